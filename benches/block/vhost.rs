//! QEMU's block layer as a device: qemu-storage-daemon's vhost-user-blk, driven by the same ring.
//! The messages are those of QEMU's docs/interop/vhost-user.rst.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::Result;
use crate::ring::{AVAILABLE, DESCRIPTORS, MEMORY, SIZE, USED};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
/// Version 1 of the protocol.
const VERSION: u32 = 1;
/// VIRTIO_F_VERSION_1, EVENT_IDX, INDIRECT_DESC, and the protocol features of vhost-user.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30;

/// A running daemon with a connection to it.
pub struct Daemon {
    child: Child,
    stream: UnixStream,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Daemon {
    /// Starts the daemon on an image. `options` are those of its file node. With `iothread` the device has one, as a
    /// virtual machine may have; it polls for a while before it sleeps.
    pub fn start(
        image: &Path,
        options: &str,
        iothread: bool,
        memory: &GuestMemoryMmap,
        file: RawFd,
        dir: &Path,
    ) -> Result<Self> {
        let socket = dir.join("vhost");
        let _ = std::fs::remove_file(&socket);
        let node = format!("driver=file,filename={},node-name=file,{options}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=raw,writable=on,addr.type=unix,addr.path={}{}",
            socket.display(),
            if iothread { ",iothread=thread" } else { "" }
        );
        let child = Command::new("qemu-storage-daemon")
            .args(["--object", "iothread,id=thread"].iter().take(if iothread { 2 } else { 0 }))
            .args(["--blockdev", &node, "--blockdev", "driver=raw,file=file,node-name=raw"])
            .args(["--export", &export])
            .stdin(Stdio::null())
            .spawn()?;
        let mut daemon =
            Self { child, stream: connect(&socket)?, kick: EventFd::new(0)?, call: EventFd::new(0)? };
        daemon.set_up(memory, file)?;
        Ok(daemon)
    }

    /// Processor time it has used.
    pub fn cpu(&self) -> Result<Duration> {
        crate::process_cpu(self.child.id())
    }

    fn send(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut message = Vec::new();
        for word in [request, VERSION, payload.len() as u32] {
            message.extend(word.to_le_bytes());
        }
        message.extend(payload);
        if fds.is_empty() {
            self.stream.write_all(&message)?;
        } else {
            self.stream.send_with_fds(&[message.as_slice()], fds)?;
        }
        Ok(())
    }

    fn get(&mut self, request: u32) -> Result<u64> {
        self.send(request, &[], &[])?;
        let mut reply = [0; 20];
        self.stream.read_exact(&mut reply)?;
        Ok(u64::from_le_bytes(reply[12..].try_into()?))
    }

    fn set_up(&mut self, memory: &GuestMemoryMmap, file: RawFd) -> Result<()> {
        let base = memory.get_host_address(GuestAddress(0))?.addr() as u64;
        let words = |list: &[u64]| list.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let state = |number: u32| [0u32.to_le_bytes(), number.to_le_bytes()].concat();
        self.send(SET_OWNER, &[], &[])?;
        let offered = self.get(GET_FEATURES)?;
        // None of its protocol features is needed.
        self.get(GET_PROTOCOL_FEATURES)?;
        self.send(SET_PROTOCOL_FEATURES, &words(&[0]), &[])?;
        self.send(SET_FEATURES, &words(&[offered & FEATURES]), &[])?;
        // One region: its number, guest address, length, our address, offset in the file.
        self.send(SET_MEM_TABLE, &words(&[1, 0, MEMORY as u64, base, 0]), &[file])?;
        self.send(SET_VRING_NUM, &state(SIZE.into()), &[])?;
        self.send(SET_VRING_BASE, &state(0), &[])?;
        self.send(SET_VRING_ADDR, &words(&[0, base + DESCRIPTORS, base + USED, base + AVAILABLE, 0]), &[])?;
        let (kick, call) = (self.kick.as_raw_fd(), self.call.as_raw_fd());
        self.send(SET_VRING_CALL, &words(&[0]), &[call])?;
        self.send(SET_VRING_KICK, &words(&[0]), &[kick])?;
        self.send(SET_VRING_ENABLE, &state(1), &[])?;
        // The answer comes when all before it has been taken.
        self.get(GET_FEATURES)?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
