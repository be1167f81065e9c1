package control

import "path/filepath"

const auditPolicyFile = "audit-policy.yaml"

// auditPolicy records who changed what and who looked into a pod, and never a body: those of Secrets and of tokens are
// in none of the lines. What the cluster writes by itself all day long, heartbeats and events, is left out.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources:
  - group: coordination.k8s.io
    resources: [leases]
  - group: ""
    resources: [events, nodes/status, pods/status]
  - group: events.k8s.io
    resources: [events]
- level: None
  resources:
  - group: authentication.k8s.io
  - group: authorization.k8s.io
- level: Metadata
  resources:
  - group: ""
    resources: [pods/exec, pods/attach, pods/portforward, pods/proxy, services/proxy, nodes/proxy]
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
`

// auditArguments keep at most four files of 10 MB: boards write to flash.
func (o Options) auditArguments() []string {
	if !o.Audit {
		return nil
	}
	return []string{
		"--audit-policy-file=" + o.runtime(auditPolicyFile),
		"--audit-log-path=" + filepath.Join(o.AuditDir, "audit.log"),
		"--audit-log-maxsize=10",
		"--audit-log-maxbackup=3",
	}
}
