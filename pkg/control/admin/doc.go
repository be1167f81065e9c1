// Package admin is the control plane's interface for a server's operator: the cluster's state in one answer, the tokens
// that let machines join, the replacement of the authorities, and client configurations for people. It is HTTP/1.1 with JSON bodies on a unix socket for
// root alone. This package holds the messages and a client; the server is pkg/control.
//
//	GET    /v1/cluster       Cluster
//	GET    /v1/certificates  []Certificate of this server
//	GET    /v1/rotation      Rotation
//	POST   /v1/rotation      RotationRequest; Rotation
//	GET    /v1/tokens        []Token, without their texts
//	POST   /v1/tokens        TokenRequest; Token with its text
//	GET    /v1/tokens/{id}   Token with its text
//	DELETE /v1/tokens/{id}
//	POST   /v1/kubeconfig    KubeconfigRequest; the configuration as YAML
//
// Every answer that is not a success holds a Problem.
package admin
