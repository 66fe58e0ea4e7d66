"""The commands of `kveik`, one file each. `kveik.cli` wires them to the command line."""
