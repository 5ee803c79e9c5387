//! Unpacking of a bzImage's payload, as a stream: nothing is held but a window, so nothing need be bounded but time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::error::Reason;

/// How much an xz decoder may allocate; Linux compresses with dictionaries of up to 128 MiB.
const XZ_MEMORY: u64 = 192 << 20;
/// zstd at level 22 uses windows of 2^27 bytes.
const ZSTD_WINDOW_LOG: u32 = 27;
/// First word of an LZ4 legacy frame (lz4's `doc/lz4_Frame_format.md`, "Legacy frame").
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// A legacy frame's blocks unpack to this much, the last to less.
const LZ4_BLOCK: usize = 8 << 20;
/// LZ4's bound on the compressed size of an incompressible block.
const LZ4_BLOCK_BOUND: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;
const INPUT_BUFFER: usize = 128 << 10;

/// A compression that is unpacked on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// gzip (RFC 1952).
    Gzip,
    /// xz, with the x86 branch filter.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
    /// LZ4 legacy frame.
    Lz4,
}

impl Format {
    /// Recognises a payload by its first bytes, as Linux' `scripts/extract-vmlinux` does.
    ///
    /// # Errors
    /// A compression that is not unpacked on the host, or none.
    pub fn detect(magic: &[u8; 4]) -> Result<Self, Reason> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0xfd, b'7', b'z', b'X'] => Ok(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd] => Ok(Self::Zstd),
            [0x02, 0x21, 0x4c, 0x18] => Ok(Self::Lz4),
            [b'B', b'Z', b'h', _] => Err(Reason::Compression("bzip2")),
            [0x5d, 0, 0, _] => Err(Reason::Compression("lzma")),
            [0x89, b'L', b'Z', b'O'] => Err(Reason::Compression("lzo")),
            _ => Err(Reason::Compression("an unknown method")),
        }
    }

    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    /// The unpacked bytes of `range` of `file`.
    ///
    /// # Errors
    /// If the decoder cannot be set up; reading fails on damaged input.
    pub fn reader<'a>(self, file: &'a File, range: Range<u64>) -> io::Result<Box<dyn Read + 'a>> {
        let input = BufReader::with_capacity(INPUT_BUFFER, FileRange { file, range });
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Lz4 => Box::new(Lz4Legacy { input, packed: Vec::new(), block: Vec::new(), at: 0, end: 0 }),
        })
    }
}

/// A range of a file as a stream, without moving the file's position.
struct FileRange<'a> {
    file: &'a File,
    range: Range<u64>,
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end.saturating_sub(self.range.start);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..len).unwrap_or_default(), self.range.start)?;
        self.range.start = self.range.start.saturating_add(count as u64);
        Ok(count)
    }
}

/// LZ4 legacy frames: the magic number, then blocks, each after its packed size; the block codec is lz4_flex's, which
/// does not know this frame.
struct Lz4Legacy<R> {
    input: R,
    packed: Vec<u8>,
    block: Vec<u8>,
    /// Unread part of `block`.
    at: usize,
    end: usize,
}

impl<R: BufRead> Lz4Legacy<R> {
    /// Unpacks the next block; `false` at the end of input.
    fn next_block(&mut self) -> io::Result<bool> {
        let size = loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut word = [0; 4];
            self.input.read_exact(&mut word)?;
            // Frames may follow one another.
            match u32::from_le_bytes(word) {
                LZ4_LEGACY_MAGIC => {}
                size => break size as usize,
            }
        };
        if size == 0 || size > LZ4_BLOCK_BOUND {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("LZ4 block of {size} bytes")));
        }
        self.packed.resize(size, 0);
        self.input.read_exact(&mut self.packed)?;
        self.block.resize(LZ4_BLOCK, 0);
        self.at = 0;
        self.end = lz4_flex::block::decompress_into(&self.packed, &mut self.block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(true)
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.end {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let count = self.block.get(self.at..self.end).unwrap_or_default().read(buffer)?;
        self.at += count;
        Ok(count)
    }
}
