//! Where each cgroup controller is, in whichever of the three layouts the host has: v2, v1, or hybrid (v1
//! controllers beside a v2 hierarchy that has few or none). cgroups(7).

use super::mountinfo::{self, Mount};
use std::io;
use std::path::{Path, PathBuf};

/// Version of the interface of one hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller or group of them.
    V1,
    /// The unified hierarchy.
    V2,
}

/// What the mounted hierarchies are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// No hierarchy of either version that this process has a group in.
    None,
    /// Version 1 alone.
    V1,
    /// Version 2 alone; named v1 hierarchies without controllers do not count.
    V2,
    /// Version 1 controllers beside a version 2 hierarchy.
    Hybrid,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version of its interface.
    pub version: Version,
    /// The controllers that can be used in it.
    pub controllers: Vec<String>,
    /// This process's own group in it.
    pub group: PathBuf,
}

/// All hierarchies this process can see its own group in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// In the order of /proc/self/cgroup.
    pub hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Reads `proc/self/mountinfo`, `proc/self/cgroup` and the v2 group's `cgroup.controllers` below `root` (`/`
    /// but in tests).
    pub fn detect(root: &Path) -> io::Result<Self> {
        let mounts = mountinfo::read(root)?;
        let membership = std::fs::read_to_string(root.join("proc/self/cgroup"))?;
        Ok(Self::parse(&mounts, &membership, |group| {
            let group = group.strip_prefix("/").unwrap_or(group);
            std::fs::read_to_string(root.join(group).join("cgroup.controllers")).unwrap_or_default()
        }))
    }

    /// Finds the hierarchies from the mounts and the text of /proc/self/cgroup. `v2_controllers` gives the text of
    /// `cgroup.controllers` of a v2 group.
    pub fn parse(mounts: &[Mount], membership: &str, v2_controllers: impl Fn(&Path) -> String) -> Self {
        let hierarchies = membership.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, names, path) = (fields.next()?, fields.next()?, Path::new(fields.next()?));
            if id == "0" && names.is_empty() {
                let group = own_group(mounts, path, |m| m.fs_type == "cgroup2")?;
                let controllers = words(&v2_controllers(&group));
                return Some(Hierarchy { version: Version::V2, controllers, group });
            }
            let first = names.split(',').next()?;
            let group = own_group(mounts, path, |m| m.fs_type == "cgroup" && m.has_super_option(first))?;
            let controllers =
                names.split(',').filter(|name| !name.contains('=')).map(str::to_owned).collect();
            Some(Hierarchy { version: Version::V1, controllers, group })
        });
        Self { hierarchies: hierarchies.collect() }
    }

    /// The hierarchy with this controller, e.g. `memory`.
    pub fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == name))
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        let v1 = self.hierarchies.iter().any(|h| h.version == Version::V1 && !h.controllers.is_empty());
        let v2 = self.hierarchies.iter().any(|h| h.version == Version::V2);
        match (v1, v2) {
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::V1,
            (false, true) => Layout::V2,
            (false, false) => Layout::None,
        }
    }
}

/// The directory of group `path` in the first wanted mount that shows it: a container may have only a part of the
/// hierarchy mounted.
fn own_group(mounts: &[Mount], path: &Path, wanted: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    mounts.iter().filter(|m| wanted(m)).find_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?;
        // `/../..`: a group above the root of this cgroup namespace.
        let visible = below.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        // `join("")` would add a slash at the end.
        visible.then(|| mount.mount_point.components().chain(below.components()).collect())
    })
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{Cgroups, Layout, Version};
    use crate::host::mountinfo;
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    fn parse(mounts: &str, membership: &str) -> Cgroups {
        Cgroups::parse(&mountinfo::parse(mounts.as_bytes()), membership, |_| {
            "cpuset cpu memory pids\n".into()
        })
    }

    #[test]
    fn v2() {
        let groups = parse(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            "0::/user.slice/user-1000.slice/session-3.scope\n",
        );
        let memory = groups.controller("memory").unwrap();
        assert_eq!(memory.version, Version::V2);
        assert_eq!(memory.group, PathBuf::from("/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"));
        assert_eq!(groups.layout(), Layout::V2);
        assert!(groups.controller("io").is_none());
    }

    #[test]
    fn v1_with_joined_controllers() {
        let groups = parse(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n",
            "3:cpu,cpuacct:/a\n2:memory:/b\n1:name=systemd:/\n",
        );
        assert_eq!(
            groups.controller("cpuacct").unwrap().group,
            PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a")
        );
        assert_eq!(groups.controller("memory").unwrap().group, PathBuf::from("/sys/fs/cgroup/memory/b"));
        assert_eq!(groups.hierarchies.len(), 3);
        assert_eq!(groups.layout(), Layout::V1);
    }

    #[test]
    fn hybrid_keeps_each_controller_where_it_is() {
        let mounts = mountinfo::parse(
            b"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
              41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let groups = Cgroups::parse(&mounts, "4:memory:/x\n0::/\n", |group| {
            assert_eq!(group, Path::new("/sys/fs/cgroup/unified"));
            "hugetlb\n".into()
        });
        assert_eq!(groups.controller("memory").unwrap().version, Version::V1);
        assert_eq!(groups.controller("hugetlb").unwrap().version, Version::V2);
        assert_eq!(groups.layout(), Layout::Hybrid);
    }

    #[test]
    fn a_named_hierarchy_does_not_make_v2_hybrid() {
        let groups = parse(
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
             37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n",
            "1:name=systemd:/\n0::/\n",
        );
        assert_eq!(groups.layout(), Layout::V2);
    }

    #[test]
    fn a_container_sees_part_of_the_hierarchy() {
        let mount = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let group = |membership| parse(mount, membership).hierarchies.first().map(|h| h.group.clone());
        assert_eq!(group("0::/docker/abc\n"), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(group("0::/docker/abc/x\n"), Some(PathBuf::from("/sys/fs/cgroup/x")));
        assert_eq!(group("0::/docker/abcd\n"), None);
        assert_eq!(group("0::/\n"), None);
        let namespaced = "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(parse(namespaced, "0::/../other\n").layout(), Layout::None);
    }

    #[test]
    fn detects_below_a_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("proc/self")).unwrap();
        std::fs::create_dir_all(at("sys/fs/cgroup/job")).unwrap();
        std::fs::write(at("proc/self/mountinfo"), "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 none rw\n")
            .unwrap();
        std::fs::write(at("proc/self/cgroup"), "0::/job\n").unwrap();
        std::fs::write(at("sys/fs/cgroup/job/cgroup.controllers"), "cpu io\n").unwrap();
        let groups = Cgroups::detect(root.path()).unwrap();
        assert_eq!(groups.controller("io").unwrap().group, PathBuf::from("/sys/fs/cgroup/job"));
    }

    proptest! {
        #[test]
        fn own_group_stays_below_its_mount(
            root in "/([a-c]/?){0,3}", path in "(/[a-c.]{0,2}){0,5}", names in "[a-z,=]{0,8}", id in 0u8..3,
        ) {
            let mounts = format!("1 2 0:3 {root} /cg rw - cgroup2 n rw\n1 2 0:4 {root} /cg/v1 rw - cgroup n rw,{names}\n");
            let groups = parse(&mounts, &format!("{id}:{names}:{path}\nno colon\n:\n"));
            for hierarchy in &groups.hierarchies {
                prop_assert!(hierarchy.group.starts_with("/cg"));
                prop_assert!(hierarchy.group.components().all(|c| c.as_os_str() != ".."));
            }
            prop_assert!(groups.hierarchies.len() <= 1);
        }
    }
}
