//! What the host has besides KVM, and what it means.

use super::facts::{Facts, UserNamespaces};
use super::report::Finding;
use crate::host::cgroup::Layout;
use crate::host::paths::{PathsError, STANDARD};
use crate::host::runtimes::{KNOWN, Program};

/// The default guest's memory, Tandem's own and some for the command, in KiB.
const MEMORY_KIB: u64 = 256 * 1024;
/// The controllers that limit and measure a container.
pub(super) const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Everything but KVM.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        guest(facts),
        memory(facts),
        cgroups(facts),
        user_namespaces(facts.user_namespaces, facts.kvm.root),
    ];
    findings.extend(KNOWN.iter().map(|(name, _)| program(name, &facts.programs)));
    findings
}

fn guest(facts: &Facts) -> Finding {
    match &facts.guest {
        Ok(guest) => {
            let hash: String = guest.hash.chars().take(12).collect();
            let value = format!("Linux {}, build {hash}", guest.version);
            let finding =
                Finding::ok("guest", value, format!("the {} guest is built", guest.flavour)).required();
            if facts.kvm.takes_ring3() && guest.flavour == STANDARD {
                return finding.warning(
                    "run ./scripts/build-guest --flavour ring3: it starts a hundred times as fast here",
                );
            }
            finding
        }
        Err(error) => {
            let build = match facts.kvm.takes_ring3() {
                true => "run ./scripts/build-guest --flavour ring3",
                false => "run ./scripts/build-guest --flavour standard",
            };
            let (meaning, remedy) = match error {
                PathsError::NoCacheDir => ("no cache directory is known".into(), "set HOME or TANDEM_CACHE"),
                PathsError::NotBuilt { missing, .. } => (format!("{} is missing", missing.display()), build),
                PathsError::Manifest { path, .. } | PathsError::ManifestFormat { path, .. } => {
                    (format!("{} cannot be read", path.display()), build)
                }
            };
            Finding::ok("guest", "not built", meaning).missing(remedy).required()
        }
    }
}

fn memory(facts: &Facts) -> Finding {
    match facts.memory_kib {
        None => Finding::ok("memory", "unknown", "/proc/meminfo cannot be read").warning("mount /proc"),
        Some(kib) => {
            let value = format!("{} MiB available", kib / 1024);
            if kib >= MEMORY_KIB {
                return Finding::ok("memory", value, "enough for the default guest of 128 MiB");
            }
            Finding::ok("memory", value, "little for the default guest of 128 MiB")
                .warning("end other programs, or give the guest less with `--memory 64M`")
        }
    }
}

fn cgroups(facts: &Facts) -> Finding {
    let finding = |value: String, meaning: &str| Finding::ok("cgroups", value, meaning);
    let groups = match &facts.cgroups {
        Ok(groups) => groups,
        Err(error) => return finding(error.clone(), "cgroups cannot be looked at").warning("mount /proc"),
    };
    let with = match facts.controllers.is_empty() {
        true => "no controllers".into(),
        false => format!("with {}", facts.controllers.join(", ")),
    };
    let value = format!("{}, {with}", layout(groups.layout()));
    let all = CONTROLLERS.iter().all(|name| facts.controllers.contains(name));
    match groups.layout() {
        Layout::None => finding(value, "no hierarchy is mounted: nothing limits or measures a container")
            .warning("mount it with `sudo mount -t cgroup2 none /sys/fs/cgroup`"),
        _ if !all => {
            finding(value, "not all of cpu, memory and pids: limits and peaks of a container are incomplete")
                .warning(match facts.kvm.root {
                    true => "have the kernel (cgroup_enable= on its command line) or what this runs in make them available",
                    false => "run as root, or with systemd: `systemd-run --user --scope -p Delegate=yes tandem ...`",
                })
        }
        Layout::Hybrid => finding(value, "each controller is used where it is; crun refuses this layout")
            .warning("boot the host with `systemd.unified_cgroup_hierarchy=1` to have version 2 alone"),
        Layout::V1 => finding(value, "works, but upstream retires it")
            .warning("boot the host with `systemd.unified_cgroup_hierarchy=1` for version 2"),
        Layout::V2 => finding(value, "containers can be limited and measured"),
    }
}

fn layout(layout: Layout) -> &'static str {
    match layout {
        Layout::None => "none",
        Layout::V1 => "version 1",
        Layout::V2 => "version 2",
        Layout::Hybrid => "hybrid",
    }
}

fn user_namespaces(found: UserNamespaces, root: bool) -> Finding {
    let finding = |value, meaning| Finding::ok("user-namespaces", value, meaning);
    match found {
        UserNamespaces { refused: None, apparmor_restrict: Some(1..), .. } if !root => {
            finding("restricted", "AppArmor takes all capabilities in them: containers need root")
                .warning("allow them with `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`")
        }
        UserNamespaces { refused: None, .. } => finding("allowed", "containers can run without root"),
        UserNamespaces { max: Some(0), .. } => finding("none", "user.max_user_namespaces is 0")
            .missing("allow them with `sudo sysctl user.max_user_namespaces=15000`"),
        UserNamespaces { unprivileged_clone: Some(0), .. } if !root => {
            finding("refused", "kernel.unprivileged_userns_clone is 0: containers need root")
                .missing("allow them with `sudo sysctl kernel.unprivileged_userns_clone=1`")
        }
        UserNamespaces { refused: Some(errno), .. } => {
            let value = format!("refused: {}", nix::errno::Errno::from_raw(errno).desc());
            Finding::ok("user-namespaces", value, "containers need root").missing(
                "if this is a container, its seccomp profile forbids them: start it with `--privileged`",
            )
        }
    }
}

fn program(name: &'static str, programs: &[Program]) -> Finding {
    let (use_, source) = match name {
        "runc" => ("a container to compare with", Ok("runc")),
        "crun" => ("a container to compare with", Ok("crun")),
        "bwrap" => ("a container to compare with", Ok("bubblewrap")),
        "unshare" => ("a container to compare with", Ok("util-linux")),
        "podman" => ("a container to compare with", Ok("podman")),
        "docker" => ("a container to compare with", Ok("docker.io")),
        "qemu-system-x86_64" => ("a VMM to compare with", Ok("qemu-system-x86")),
        "firecracker" => ("a VMM to compare with", Err("github.com/firecracker-microvm/firecracker")),
        _ => ("a VMM to compare with", Err("github.com/cloud-hypervisor/cloud-hypervisor")),
    };
    match programs.iter().find(|p| p.name == name) {
        Some(Program { version: Ok(version), path, .. }) => {
            Finding::ok(name, version.as_str(), format!("{use_}, {}", path.display()))
        }
        Some(Program { version: Err(_), path, .. }) if name == "docker" => {
            Finding::ok(name, "no daemon", format!("{} is there but its daemon does not answer", path.display()))
                .warning("start it with `sudo systemctl start docker` or `sudo dockerd`; join its group: `sudo usermod -aG docker $USER`")
        }
        Some(Program { version: Err(error), path, .. }) => {
            Finding::ok(name, error.to_string(), format!("{} does not work", path.display()))
                .warning("see what it says to `--version`")
        }
        None => Finding::ok(name, "not found", format!("{use_}; `tandem run` does not need it")).missing(match source {
            Ok(package) => format!("sudo apt-get install {package}"),
            Err(site) => format!("put a release of https://{site} on PATH"),
        }),
    }
}

#[cfg(test)]
mod tests;
