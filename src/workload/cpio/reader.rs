//! A reader for tests, which keeps to what `init/initramfs.c` does with an archive.

use std::collections::BTreeMap;

/// A member as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: Vec<u8>,
    pub ino: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub mtime: u32,
    pub rdev: (u32, u32),
    pub data: Vec<u8>,
}

/// Reads one archive and returns what follows it.
pub fn read(bytes: &[u8]) -> (Vec<Member>, &[u8]) {
    let mut rest = bytes;
    let mut members = Vec::new();
    loop {
        assert_eq!(&rest[..6], b"070701");
        let field = |index: usize| {
            let text = std::str::from_utf8(&rest[6 + 8 * index..14 + 8 * index]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let (size, name_len) = (field(6) as usize, field(11) as usize);
        assert!((2..=4096).contains(&name_len) && rest[109 + name_len] == 0 && field(12) == 0);
        let name = rest[110..109 + name_len].to_vec();
        let data_at = (110 + name_len).next_multiple_of(4);
        let data = rest[data_at..data_at + size].to_vec();
        let next = (data_at + size).next_multiple_of(4);
        assert!(rest[110 + name_len..data_at].iter().all(|byte| *byte == 0));
        let member = Member {
            name,
            ino: field(0),
            mode: field(1),
            uid: field(2),
            gid: field(3),
            nlink: field(4),
            mtime: field(5),
            rdev: (field(9), field(10)),
            data,
        };
        rest = &rest[next..];
        if member.name == b"TRAILER!!!" {
            return (members, rest);
        }
        members.push(member);
    }
}

/// What Linux makes of a file: regular files by name, with a number that names of one file share.
pub fn regular_files(members: &[Member]) -> BTreeMap<Vec<u8>, (usize, Vec<u8>)> {
    let mut links = BTreeMap::new();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    let mut names = BTreeMap::new();
    for member in members.iter().filter(|member| member.mode & libc::S_IFMT == libc::S_IFREG) {
        // maybe_link(): a later name is linked to the first and opened without truncation.
        let known = (member.nlink >= 2).then(|| links.get(&member.ino).copied()).flatten();
        let file = known.unwrap_or(contents.len());
        if known.is_none() {
            contents.push(Vec::new());
            links.insert(member.ino, file);
        }
        if !member.data.is_empty() {
            contents[file].clone_from(&member.data);
        }
        names.insert(member.name.clone(), file);
    }
    names.into_iter().map(|(name, file)| (name, (file, contents[file].clone()))).collect()
}
