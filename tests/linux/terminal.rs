//! The interactive console on a pseudo-terminal.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::LIMIT;
use crate::common::guest;
use crate::session::Session;

#[test]
fn keys_and_terminal() {
    if guest("keys_and_terminal").is_none() {
        return;
    }
    let mut session = Session::start(&[]);
    session.expect("# ");
    assert!(session.is_raw());
    session.type_keys(b"\x01h");
    session.expect("end the VM");
    session.type_keys(b"echo $((40+2))\r");
    session.expect("42\r\n");
    session.type_keys(b"\x01x");
    session.assert_ends(0);
}

#[test]
fn a_signal_restores_the_terminal() {
    if guest("a_signal_restores_the_terminal").is_none() {
        return;
    }
    let mut session = Session::start(&[]);
    // As soon as it is raw; the guest need not be up.
    let deadline = Instant::now() + LIMIT;
    while !session.is_raw() {
        assert!(Instant::now() < deadline && session.child.try_wait().expect("wait").is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(session.child.id().cast_signed()), Signal::SIGTERM).expect("kill");
    session.assert_ends(143);
}

#[test]
fn a_long_paste_arrives_whole() {
    if guest("a_long_paste_arrives_whole").is_none() {
        return;
    }
    // By the serial port's flow control, and by the ring3 guest's console where that is what runs here.
    for options in [&["--guest", "standard"][..], &[]] {
        paste(options);
    }
}

fn paste(options: &[&str]) {
    let mut session = Session::start(options);
    session.expect("# ");
    session.type_keys(b"stty -echo; cat >/tmp/paste; wc -c /tmp/paste; cksum /tmp/paste; poweroff\r");
    session.expect("\r\n");
    let line: Vec<u8> = (0..99u8).map(|n| b'!' + n % 90).chain([b'\r']).collect();
    let mut master = session.master.try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        (0..1000).for_each(|_| master.write_all(&line).expect("typing"));
        master.write_all(b"\x04").expect("typing");
    });
    session.expect("100000 /tmp/paste");
    writer.join().expect("writer");
    session.assert_ends(0);
}
