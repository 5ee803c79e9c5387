use std::io::Write;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use super::*;
use crate::devices::virtio::block::storage::{Aligned, Buffers};

#[path = "../../../../../tests/common/seccomp.rs"]
mod seccomp;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

fn read(memory: &Arc<Aligned>, job: usize, len: u64) -> Operation {
    Operation { job, action: Action::Read, offset: 0, len, buffers: Buffers::repeated(memory, len) }
}

/// Does it in a thread of its own, as a ring wants it; what it returns, or that it has not yet.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver
}

/// A ring on a pipe, where reads wait for whatever long; `None` where there is no io_uring.
fn on_a_pipe() -> Option<(Uring, io::PipeWriter)> {
    let (reader, writer) = io::pipe().unwrap();
    let file = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    match Uring::new(file, false, 64, &EventFd::new(0).unwrap()) {
        Ok(uring) => Some((uring, writer)),
        Err(error) => {
            eprintln!("SKIPPED: no io_uring: {error}");
            None
        }
    }
}

/// Without it this would wait until somebody writes to the pipe, who never does.
#[test]
fn the_end_takes_back_what_the_kernel_has_not_begun_in_earnest() {
    let end = apart(|| {
        let Some((mut uring, writer)) = on_a_pipe() else { return };
        let memory = Arc::new(Aligned::zeroed(4096, 4096).unwrap());
        (0..3).for_each(|job| uring.push(read(&memory, job, 4096)));
        uring.submit().unwrap();
        assert!(uring.completion().is_none() && Arc::strong_count(&memory) == 4);
        uring.rest();
        let mut jobs = Vec::new();
        while let Some(Completion { operation, result }) = uring.completion() {
            assert!(result.is_err());
            jobs.push(operation.job);
        }
        jobs.sort_unstable();
        assert_eq!(jobs, [0, 1, 2]);
        drop((uring, writer));
    });
    assert_eq!(end.recv_timeout(LIMIT), Ok(()));
}

/// Neither does a submission that is refused hold up what else is to be done, nor is the end said to have come while the
/// kernel may still write to memory.
#[test]
fn a_kernel_that_is_busy_is_asked_again_and_waited_for_in_the_end() {
    let (sender, pipe) = mpsc::channel();
    let end = apart(move || {
        let (mut uring, writer) = on_a_pipe()?;
        let memory = Arc::new(Aligned::zeroed(4096, 4096).unwrap());
        uring.push(read(&memory, 0, 4096));
        uring.submit().unwrap();
        // Nothing can be submitted any more, waited for, nor cancelled.
        seccomp::refuse([libc::SYS_io_uring_enter, libc::SYS_io_uring_register], libc::EBUSY).unwrap();
        uring.push(read(&memory, 1, 4096));
        uring.submit().unwrap();
        assert!(uring.arm(), "the second is still to be submitted");
        sender.send(writer).unwrap();
        drop(uring);
        // Only the first was the kernel's, which has been so kind in the end.
        Some((Arc::strong_count(&memory), memory.bytes()[..5].to_vec()))
    });
    let Ok(mut writer) = pipe.recv_timeout(LIMIT) else { return assert_eq!(end.recv(), Ok(None)) };
    assert_eq!(end.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
    writer.write_all(b"hello").unwrap();
    assert_eq!(end.recv_timeout(LIMIT), Ok(Some((1, b"hello".to_vec()))));
}

#[test]
fn the_kernel_is_given_only_so_much_at_a_time() {
    let end = apart(|| {
        let Some((mut uring, _writer)) = on_a_pipe() else { return };
        let memory = Arc::new(Aligned::zeroed(4096, 4096).unwrap());
        (0..60).for_each(|job| uring.push(read(&memory, job, AT_ONCE.into())));
        uring.submit().unwrap();
        assert_eq!((uring.in_flight, uring.waiting.len()), (IN_FLIGHT, 56));
        assert!(!uring.arm(), "there is nothing to do before one completes");
    });
    assert_eq!(end.recv_timeout(LIMIT), Ok(()));
    // All are performed nevertheless, and something larger as well.
    let end = apart(|| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(IN_FLIGHT * 2).unwrap();
        let Ok(mut uring) = Uring::new(Arc::new(file), false, 64, &EventFd::new(0).unwrap()) else { return };
        let memory = Arc::new(Aligned::zeroed(1 << 20, 4096).unwrap());
        (0..64)
            .for_each(|job| uring.push(read(&memory, job, if job == 9 { IN_FLIGHT * 2 } else { 1 << 20 })));
        let mut count = 0;
        while count < 64 {
            uring.submit().unwrap();
            assert!(uring.in_flight <= IN_FLIGHT);
            while let Some(Completion { operation, result }) = uring.completion() {
                assert_eq!(result.unwrap(), operation.len);
                count += 1;
            }
        }
        assert!(uring.is_idle() && uring.in_flight == 0);
    });
    assert_eq!(end.recv_timeout(LIMIT), Ok(()));
}
