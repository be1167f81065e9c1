// Package rotation replaces the cluster's authorities on the running cluster, with no restart and no outage.
//
// What is under way is in one Secret, kube-system/cairn-rotation, which holds the successors of all authorities with their
// keys, encrypted like all Secrets. It goes through three stages:
//
//	          Begin                 every server                all servers, witnesses and
//	            │                   trusts them                 agents have the new bundle
//	            ▼                        │                                 │
//	(none) ── trust ─────────────────────┴──▶ sign ────────────────────────┴──▶ retire ──▶ (none)
//	          both are trusted,               both are trusted,                 the new are trusted,
//	          the old sign                    the new sign                      the new sign
//
// Three parts do the work. Begin makes the successors and the Secret. A Server runs on every server: it brings the files
// there to the stage that the Secret says, by pkg/pki, and says so in the server's record (join.SetAuthorities). The Leader
// runs where the cluster's controllers do: it looks who has come as far as the stage, lets some time pass for those who
// read files now and then (settle), and writes the next stage. Agents and witnesses look after themselves (join.Follow).
//
// A server or a witness that is off is waited for: it could not talk to the others after a stage that it missed. Removing
// it from the cluster ends the wait. An agent that is off is not: it comes back by its identity alone, and believes a
// server by the cross certificate that the old authority signed for the new one.
//
// The power may be cut at any moment. The Secret changes by single writes, which name the version that they replace; what
// a server did to its files it does again, to the same end, until it has said that it is done; and a leader knows
// nothing that is not in the Secret, in records and in Nodes, so that any other one goes on. At the end the controllers begin
// anew, because Kubernetes' publisher of kube-root-ca.crt reads its file when it starts: the Secret is deleted by a leader
// whose controllers began after that. When a snapshot of the data of before is restored, the Secret may come back with
// successors that are predecessors by now: nobody takes these up, and the first server that sees them deletes it.
package rotation
