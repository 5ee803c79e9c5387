//! /dev/kvm: what is to be seen of it.

mod proof;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use kvm_ioctls::Cap;
use nix::unistd::{Uid, getgroups};

use crate::host::errors::chain;
use crate::hypervisor::kvm::KvmHypervisor;

/// The device.
pub const DEVICE: &str = "/dev/kvm";
/// How long the first instructions of a VM may take; software KVM needs less than a millisecond.
const PROOF_WITHIN: Duration = Duration::from_secs(5);
/// A KVM extension that Tandem uses.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// Its name without `KVM_CAP_`.
    pub name: &'static str,
    cap: Cap,
    /// What is lost without it; `None` if nothing works without it.
    pub without: Option<&'static str>,
}

/// The extensions in use. Each needed one is in every kernel since 4.12.
pub const CAPABILITIES: [Capability; 8] = [
    Capability { name: "USER_MEMORY", cap: Cap::UserMemory, without: None },
    Capability { name: "EXT_CPUID", cap: Cap::ExtCpuid, without: None },
    Capability { name: "MP_STATE", cap: Cap::MpState, without: None },
    Capability { name: "IRQ_ROUTING", cap: Cap::IrqRouting, without: None },
    Capability { name: "IRQFD", cap: Cap::Irqfd, without: None },
    Capability { name: "SPLIT_IRQCHIP", cap: Cap::SplitIrqchip, without: None },
    Capability { name: "IMMEDIATE_EXIT", cap: Cap::ImmediateExit, without: None },
    Capability {
        name: "TSC_DEADLINE_TIMER",
        cap: Cap::TscDeadlineTimer,
        without: Some("guest kernels calibrate the APIC timer, which lengthens the boot"),
    },
];

/// What came of opening /dev/kvm.
#[derive(Debug)]
pub enum Kvm {
    /// There is no such file.
    Absent,
    /// EACCES or EPERM.
    Denied(DeviceGroup),
    /// Another error.
    Failed(String),
    /// It is open.
    Open(OpenKvm),
}

/// What an open /dev/kvm says.
#[derive(Debug)]
pub struct OpenKvm {
    /// KVM_GET_API_VERSION.
    pub api_version: i32,
    /// The ones of [`CAPABILITIES`] that it lacks.
    pub lacks: Vec<Capability>,
    /// What came of running a tiny VM.
    pub proof: Result<(), String>,
}

/// The group that may use a device, and whether the user is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceGroup {
    /// Its name; `None` if no group but root's may open the device for reading and writing.
    pub name: Option<String>,
    /// The user is listed in it, but this session began before that.
    pub joined_since: bool,
}

/// Opens and examines /dev/kvm.
pub fn open_kvm() -> Kvm {
    match kvm_ioctls::Kvm::new() {
        Ok(kvm) => Kvm::Open(OpenKvm {
            api_version: kvm.get_api_version(),
            lacks: CAPABILITIES.into_iter().filter(|c| !kvm.check_extension(c.cap)).collect(),
            proof: prove(),
        }),
        Err(error) => match error.errno() {
            libc::ENOENT => Kvm::Absent,
            libc::EACCES | libc::EPERM => Kvm::Denied(device_group(Path::new(DEVICE))),
            _ => Kvm::Failed(error.to_string()),
        },
    }
}

/// Runs the tiny VM in a thread of its own, which is left behind if KVM does not return from it.
fn prove() -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let proof =
            KvmHypervisor::open().map_err(|error| chain(&error)).and_then(|kvm| proof::run_tiny_vm(&kvm));
        // The receiver is gone if this was too late.
        let _ = sender.send(proof);
    });
    receiver
        .recv_timeout(PROOF_WITHIN)
        .unwrap_or_else(|_| Err(format!("no answer within {} s", PROOF_WITHIN.as_secs())))
}

/// Which group may use the device at `path`.
pub fn device_group(path: &Path) -> DeviceGroup {
    let Ok(metadata) = fs::metadata(path) else { return DeviceGroup::default() };
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let user = user_name(&read("/etc/passwd"), Uid::current().as_raw());
    let group = group_of(&read("/etc/group"), metadata.gid(), metadata.mode(), user.as_deref());
    let joined = getgroups().unwrap_or_default().iter().any(|gid| gid.as_raw() == metadata.gid());
    DeviceGroup { joined_since: group.joined_since && !joined, ..group }
}

/// Name of a user in the text of /etc/passwd.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// What the text of /etc/group says of a device's group.
fn group_of(groups: &str, gid: u32, mode: u32, user: Option<&str>) -> DeviceGroup {
    const GROUP_READ_WRITE: u32 = 0o060;
    if gid == 0 || mode & GROUP_READ_WRITE != GROUP_READ_WRITE {
        return DeviceGroup::default();
    }
    let entry = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| (name, fields.next().unwrap_or_default()))
    });
    // A container's /etc/group often does not know the host's group: the number does as well.
    let (name, members) = entry.map_or((gid.to_string(), ""), |(name, members)| (name.to_owned(), members));
    DeviceGroup { name: Some(name), joined_since: members.split(',').any(|member| Some(member) == user) }
}

#[cfg(test)]
mod tests {
    use super::{DeviceGroup, group_of, user_name};
    use proptest::prelude::*;

    const GROUPS: &str = "root:x:0:\nkvm:x:104:libvirt,ann\nplugdev:x:46:\n";

    #[test]
    fn user_name_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 1001), None);
    }

    #[test]
    fn group_that_may_use_the_device() {
        let group = |gid, mode, user| group_of(GROUPS, gid, mode, Some(user));
        let kvm = |joined_since| DeviceGroup { name: Some("kvm".into()), joined_since };
        assert_eq!(group(104, 0o20660, "bob"), kvm(false));
        assert_eq!(group(104, 0o20660, "ann"), kvm(true));
        assert_eq!(group(104, 0o20640, "ann"), DeviceGroup::default());
        assert_eq!(group(0, 0o20660, "ann"), DeviceGroup::default());
        assert_eq!(group(993, 0o20660, "ann").name.as_deref(), Some("993"));
    }

    proptest! {
        #[test]
        fn any_account_file_is_accepted(text in "([a-z0-9:,]{0,12}\n){0,6}", id in 1u32..9) {
            let group = group_of(&text, id, 0o660, None);
            prop_assert!(group.name.is_some() && !group.joined_since);
            prop_assert!(user_name(&text, id).is_none_or(|name| text.contains(&name)));
        }
    }
}
