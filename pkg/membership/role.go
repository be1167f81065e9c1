package membership

// RoleOf is the role that a machine has: the one in the membership at path, or, before it belongs to a cluster, the one
// that is configured. A configuration that changes its mind, by one server_url too many, must not take the store and the
// control plane from a server; resetting the machine is how it gets another role.
func RoleOf(path string, configured Role) Role {
	if m, err := Load(path); err == nil {
		return m.Role
	}
	return configured
}
