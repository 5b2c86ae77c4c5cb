"""The only package that speaks to /dev/kvm, and the only one that uses cffi."""
