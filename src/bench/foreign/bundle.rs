//! An OCI bundle: `config.json` of the runtime specification, with the confinement that `runc spec` proposes.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md>

use std::ffi::OsString;

use serde_json::{Value, json};

use super::Task;

/// Microseconds over which a share of the processors is counted; the kernel's own choice.
const CPU_PERIOD_US: u64 = 100_000;

/// What containers are commonly allowed, of root's powers (the default of Docker and podman).
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const NAMESPACES: [&str; 6] = ["pid", "network", "ipc", "uts", "mount", "cgroup"];

/// Whether `config.json`, which is UTF-8, can say what is to be run.
pub fn can_tell(task: &Task) -> bool {
    let variables = task.env.iter().flat_map(|(name, value)| [name, value]);
    let mut words = task.command.iter().chain(variables).map(OsString::as_os_str);
    words.all(|word| word.to_str().is_some()) && task.root.to_str().is_some()
}

/// `config.json` of a container. The cgroup is `cgroup`, an absolute path within the hierarchies.
pub fn config(task: &Task, cgroup: &str) -> Value {
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    let env: Vec<_> =
        task.env.iter().map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
    let namespaces = NAMESPACES.map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": task.command.iter().map(text).collect::<Vec<_>>(),
            "env": env,
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": text(&task.root.clone().into_os_string()), "readonly": true },
        "hostname": "tandem",
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": cgroup,
            "resources": resources(task),
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!([
        mount("/proc", "proc", &[]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
    ])
}

fn resources(task: &Task) -> Value {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(cpus) = task.cpus {
        let quota = (cpus * CPU_PERIOD_US as f64).round() as u64;
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD_US });
    }
    if let Some(memory) = task.memory {
        resources["memory"] = json!({ "limit": memory });
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_only_set_where_asked_for() {
        let task = Task {
            command: vec!["/bin/echo".into(), "a b".into()],
            env: vec![("PATH".into(), "/bin".into())],
            root: "/srv/root".into(),
            cpus: None,
            memory: None,
        };
        assert!(can_tell(&task));
        let odd = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        assert!(!can_tell(&Task { command: vec![odd], ..task.clone() }));
        let plain = config(&task, "/tandem-1-2/x");
        assert_eq!(plain["process"]["args"], json!(["/bin/echo", "a b"]));
        assert_eq!(plain["process"]["env"], json!(["PATH=/bin"]));
        assert_eq!(plain["root"], json!({ "path": "/srv/root", "readonly": true }));
        assert_eq!(plain["linux"]["resources"].get("cpu"), None);
        let limited = config(&Task { cpus: Some(0.5), memory: Some(64 << 20), ..task }, "/x");
        assert_eq!(limited["linux"]["resources"]["cpu"], json!({ "quota": 50_000, "period": 100_000 }));
        assert_eq!(limited["linux"]["resources"]["memory"]["limit"], 64 << 20);
    }
}
