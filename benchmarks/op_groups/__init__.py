"""What op_kernels.py measures, a file a group: `rows(bench)` yields them one by one."""
