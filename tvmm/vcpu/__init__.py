"""Virtual CPUs: exits, dispatch, run states, registers, CPUID and the thread that runs one."""
