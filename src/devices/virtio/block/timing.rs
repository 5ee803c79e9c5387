//! What the process's recorder is told of requests.

use super::request::{Range, Refusal, Request};
use crate::milestone::now;
use crate::milestone::trace::{self, DiskRequest};

/// A request that has been taken, for the recorder.
pub struct Taken {
    kind: &'static str,
    bytes: u64,
    at_ns: u64,
}

impl Taken {
    /// Now, if anybody wants to know.
    pub fn note(request: &Result<Request, Refusal>) -> Option<Self> {
        trace::recorder()?;
        let (kind, bytes) = describe(request);
        Some(Self { kind, bytes, at_ns: now() })
    }

    /// It is answered.
    pub fn answered(&self, disk: &str, queue: usize, done: bool) {
        let Some(recorder) = trace::recorder() else { return };
        recorder.request(DiskRequest {
            disk: disk.to_owned(),
            queue,
            kind: self.kind,
            bytes: self.bytes,
            done,
            start_ns: self.at_ns,
            end_ns: now(),
        });
    }
}

fn describe(request: &Result<Request, Refusal>) -> (&'static str, u64) {
    let ranges = |ranges: &mut dyn Iterator<Item = &Range>| ranges.map(|range| range.len).sum();
    match request {
        Ok(Request::Read { buffers, .. }) => {
            ("read", buffers.iter().map(|buffer| u64::from(buffer.len)).sum())
        }
        Ok(Request::Write { buffers, .. }) => {
            ("write", buffers.iter().map(|buffer| u64::from(buffer.len)).sum())
        }
        Ok(Request::Flush) => ("flush", 0),
        Ok(Request::GetId { .. }) => ("get_id", 0),
        Ok(Request::Discard { ranges: pieces }) => ("discard", ranges(&mut pieces.iter())),
        Ok(Request::WriteZeroes { ranges: pieces }) => {
            ("write_zeroes", ranges(&mut pieces.iter().map(|(range, _)| range)))
        }
        Err(_) => ("refused", 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::chain::Segment;

    #[test]
    fn bytes_are_those_that_the_request_concerns() {
        let buffers = vec![Segment { addr: 0, len: 512 }, Segment { addr: 4096, len: 1024 }];
        let range = Range { offset: 0, len: 4096 };
        for (request, expected) in [
            (Request::Read { offset: 0, buffers: buffers.clone() }, ("read", 1536)),
            (Request::Write { offset: 0, buffers }, ("write", 1536)),
            (Request::Flush, ("flush", 0)),
            (Request::Discard { ranges: vec![range, range] }, ("discard", 8192)),
            (Request::WriteZeroes { ranges: vec![(range, true)] }, ("write_zeroes", 4096)),
        ] {
            assert_eq!(describe(&Ok(request)), expected);
        }
        assert!(Taken::note(&Ok(Request::Flush)).is_none(), "nobody records here");
    }
}
