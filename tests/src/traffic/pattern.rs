//! Bodies with known content, so that a byte changed on the way is noticed.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// Not a power of two: a block that went astray does not fit elsewhere.
const PERIOD: usize = 251;
const CHUNK: usize = PERIOD * 256;

static CONTENT: LazyLock<Bytes> = LazyLock::new(|| (0..CHUNK).map(|at| (at % PERIOD) as u8).collect());

/// A body of `left` more bytes.
#[derive(Debug)]
pub struct Pattern {
    left: usize,
}

impl Pattern {
    pub fn new(length: usize) -> Self {
        Self { left: length }
    }
}

/// Whether a whole body is a pattern.
pub fn is_pattern(body: &[u8]) -> bool {
    body.chunks(CHUNK).all(|chunk| *chunk == CONTENT[..chunk.len()])
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = self.left.min(CHUNK);
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(CONTENT.slice(..length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let mut body: Vec<u8> = [&CONTENT[..], &CONTENT[..100]].concat();
        assert!(is_pattern(&body));
        for at in [0, PERIOD, CHUNK - 1, CHUNK, CHUNK + 99] {
            body[at] ^= 1;
            assert!(!is_pattern(&body), "byte {at}");
            body[at] ^= 1;
        }
    }
}
