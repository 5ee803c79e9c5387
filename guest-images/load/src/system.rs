//! Loads that ask the kernel for something, and what is to be known of the system.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr;

use crate::load::Work;

/// Bytes of one read or write.
const BLOCK: usize = 4096;
/// Blocks of the file that is read and written: 16 MiB.
const BLOCKS: u64 = 4096;

/// A system call that does next to nothing, and that no vDSO answers.
pub struct SystemCall;

impl Work for SystemCall {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            // SAFETY: takes nothing, and tells a number.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        Ok(())
    }
}

/// fork, exec of this program, wait.
pub struct Process {
    program: CString,
}

impl Process {
    pub fn new() -> io::Result<Self> {
        Ok(Self { program: CString::new(own_path()?.into_os_string().into_vec())? })
    }
}

impl Work for Process {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        let args = [self.program.as_ptr(), c"exit".as_ptr(), ptr::null()];
        let env = [ptr::null()];
        for _ in 0..count {
            // SAFETY: this process has one thread; the child makes two system calls, on strings and arrays that end as
            // execve wants them.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: as above.
                unsafe {
                    libc::execve(self.program.as_ptr(), args.as_ptr(), env.as_ptr());
                    libc::_exit(127);
                }
            }
            if pid < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut status = 0;
            // SAFETY: the kernel writes the status, which outlives the call.
            if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
                return Err(io::Error::last_os_error());
            }
            if status != 0 {
                return Err(io::Error::other("it cannot execute itself"));
            }
        }
        Ok(())
    }
}

/// A name in /tmp that no other process's file has.
fn temporary(kind: &str) -> PathBuf {
    format!("/tmp/tandem-load-{}-{kind}", std::process::id()).into()
}

/// Makes a small file, writes to it, removes it.
pub struct FileCreate {
    path: PathBuf,
    block: [u8; BLOCK],
}

impl FileCreate {
    pub fn new() -> Self {
        Self { path: temporary("small"), block: [1; BLOCK] }
    }
}

impl Work for FileCreate {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            let written = File::create_new(&self.path).and_then(|mut file| file.write_all(&self.block));
            fs::remove_file(&self.path)?;
            written?;
        }
        Ok(())
    }
}

/// A file of [`BLOCKS`] that has no name any more, so that nothing is left of it whatever happens.
fn large_file() -> io::Result<File> {
    let path = temporary("large");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    for number in 0..BLOCKS {
        file.write_all_at(&[number as u8; BLOCK], number * BLOCK as u64)?;
    }
    Ok(file)
}

/// Writes blocks, one after the other and from the beginning again, into the page cache.
pub struct FileWrite {
    file: File,
    block: [u8; BLOCK],
    next: u64,
}

impl FileWrite {
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: large_file()?, block: [2; BLOCK], next: 0 })
    }
}

impl Work for FileWrite {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.file.write_all_at(&self.block, self.next * BLOCK as u64)?;
            self.next = (self.next + 1) % BLOCKS;
        }
        Ok(())
    }
}

/// Reads blocks here and there, from the page cache.
pub struct FileRead {
    file: File,
    block: [u8; BLOCK],
    at: u64,
}

impl FileRead {
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: large_file()?, block: [0; BLOCK], at: 1 })
    }
}

impl Work for FileRead {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.at = self.at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.file.read_exact_at(&mut self.block, (self.at >> 33) % BLOCKS * BLOCK as u64)?;
        }
        Ok(())
    }
}

/// The path of this program: as it was called where /proc cannot tell.
fn own_path() -> io::Result<PathBuf> {
    fs::read_link("/proc/self/exe").or_else(|error| std::env::args_os().next().map(Into::into).ok_or(error))
}

/// A hash of this program's file: FNV-1a, 64 bits.
pub fn own_hash() -> io::Result<u64> {
    Ok(hash(&fs::read(own_path()?)?))
}

/// FNV-1a of 64 bits (RFC 9923).
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// What the kernel reads the time from, or `unknown`.
pub fn clock_source() -> String {
    let text = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let known = |text: String| {
        text.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect()
    };
    text.map(known).unwrap_or_else(|_| "unknown".into())
}

/// The kind of file system that a directory is in, by its magic number (statfs(2)).
pub fn file_system(path: &CStr) -> String {
    // SAFETY: the structure is plain data, for which zero is a value.
    let mut found = unsafe { std::mem::zeroed::<libc::statfs>() };
    // SAFETY: the path ends with NUL; the kernel writes to the structure, which outlives the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut found) } != 0 {
        return "none".into();
    }
    match found.f_type {
        0x0102_1994 => "tmpfs".into(),
        0x8584_58f6 => "ramfs".into(),
        0x794c_7630 => "overlay".into(),
        0xef53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x6573_5546 => "fuse".into(),
        0x0102_1997 => "9p".into(),
        other => format!("{other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn file_systems_have_names() {
        assert_eq!(file_system(c"/nowhere"), "none");
        assert_ne!(file_system(c"/"), "none");
    }
}
