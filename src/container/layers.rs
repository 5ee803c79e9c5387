//! The layers of a container that can be left out one by one, to see what each of them costs.

/// A layer. The pid and the mount namespace are always there: the init is process 1, and mounts its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The namespace of networks. Without it the host's are there.
    Net,
    /// The namespace of System V IPC and POSIX message queues.
    Ipc,
    /// The namespace of the host name. Without it the host keeps its name.
    Uts,
    /// The namespace of cgroups.
    CgroupNamespace,
    /// The cgroup.
    Cgroup,
    /// The seccomp filter.
    Seccomp,
    /// Masked and read-only paths of /proc and /sys.
    Masking,
    /// Giving capabilities up.
    Capabilities,
    /// The overlay over the root directory. Without it the directory itself is there, read-only.
    Overlay,
}

impl Layer {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Net,
        Self::Ipc,
        Self::Uts,
        Self::CgroupNamespace,
        Self::Cgroup,
        Self::Seccomp,
        Self::Masking,
        Self::Capabilities,
        Self::Overlay,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::CgroupNamespace => "cgroup-namespace",
            Self::Cgroup => "cgroup",
            Self::Seccomp => "seccomp",
            Self::Masking => "masking",
            Self::Capabilities => "capabilities",
            Self::Overlay => "overlay",
        }
    }

    /// The layer of this name.
    ///
    /// # Errors
    /// There is none; the names that there are.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|layer| layer.name() == name);
        found.ok_or_else(|| {
            format!("there is no layer '{name}'; known are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// A set of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers(u16);

impl Layers {
    /// Whether a layer is in it.
    pub const fn contains(self, layer: Layer) -> bool {
        self.0 >> layer as u16 & 1 != 0
    }

    /// Those in it, in the order of their numbers.
    pub fn names(self) -> Vec<&'static str> {
        Layer::ALL.into_iter().filter(|layer| self.contains(*layer)).map(Layer::name).collect()
    }
}

impl FromIterator<Layer> for Layers {
    fn from_iter<I: IntoIterator<Item = Layer>>(layers: I) -> Self {
        Self(layers.into_iter().fold(0, |set, layer| set | 1 << layer as u16))
    }
}

impl std::ops::BitOr for Layers {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_is_put_into_them() {
        for layer in Layer::ALL {
            assert_eq!(Layer::from_name(layer.name()), Ok(layer));
            let set = Layers::from_iter([layer]);
            let others = Layer::ALL.into_iter().filter(|other| *other != layer);
            assert!(set.contains(layer) && !others.clone().any(|other| set.contains(other)));
            assert_eq!((set | others.collect()).names(), Layer::ALL.map(Layer::name));
        }
        assert!(Layer::from_name("pid").unwrap_err().contains("'pid'; known are net, ipc"));
    }
}
