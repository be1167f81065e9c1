package kubeconfig

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"

	"k8s.io/client-go/util/cert"
)

// splitPair returns the certificates and the keys of a PEM file apart.
func splitPair(path string) (certs, keys []byte, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	var c, k bytes.Buffer
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		to := &k
		if block.Type == cert.CertificateBlockType {
			to = &c
		}
		if err := pem.Encode(to, block); err != nil {
			return nil, nil, err
		}
	}
	if c.Len() == 0 || k.Len() == 0 {
		return nil, nil, fmt.Errorf("%s: want a certificate and its key", path)
	}
	return c.Bytes(), k.Bytes(), nil
}
