"""Models: one file per family, and how a reference such as `zoo:mini-a` becomes one."""
