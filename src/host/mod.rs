//! The host: cgroup layouts, mounts, /proc, the terminal.
