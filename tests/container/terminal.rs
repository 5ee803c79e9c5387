//! A shell in a container on the user's own terminal.

use crate::guest;
use crate::session::Session;

#[test]
fn a_shell_has_the_terminal_and_gives_it_back() {
    if guest("a_shell_has_the_terminal_and_gives_it_back").is_none() {
        return;
    }
    let mut session = Session::start(&["--as", "container"]);
    session.expect("# ");
    session.type_keys(b"echo $((40+2)); sleep 1000\r");
    session.expect("42\r\n");
    // The key ends the program in front, not the shell and not Tandem.
    std::thread::sleep(std::time::Duration::from_millis(200));
    session.type_keys(b"\x03");
    session.expect("# ");
    session.type_keys(b"echo status $?\r");
    session.expect("status 130\r\n");
    session.type_keys(b"stty -echo -icanon; exit 4\r");
    session.assert_ends(4);
}

#[test]
fn a_key_ends_a_command() {
    if guest("a_key_ends_a_command").is_none() {
        return;
    }
    let mut session = Session::start(&["--as", "container", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    session.expect("ready\r\n");
    session.type_keys(b"\x03");
    session.assert_ends(130);
}
