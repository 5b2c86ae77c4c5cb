"""Control socket (QMP) and the registry of running machines."""
