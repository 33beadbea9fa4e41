// NCCL without anything but its version, for tests.
int ncclGetVersion(int* version) { *version = 22703; return 0; }
