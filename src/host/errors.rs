//! Errors in words.

use std::error::Error;

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_follow() {
        let cause = io::Error::from_raw_os_error(libc::EBUSY);
        assert_eq!(
            super::chain(&Outer(cause)),
            format!("cannot start: {}", io::Error::from_raw_os_error(16))
        );
    }
}
