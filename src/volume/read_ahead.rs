//! A reader whose source works on a thread of its own: a file is inflated while what is inflated already is used.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Bytes handed over at a time: small enough for both cores' caches.
const BUFFER: usize = 256 << 10;
/// Buffers on their way.
const BUFFERS: usize = 8;

/// Reads what `source` gives, in order, errors included. The thread ends with its source or with this reader.
pub(super) struct ReadAhead {
    filled: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl ReadAhead {
    pub(super) fn new(source: impl Read + Send + 'static) -> Self {
        let (give, filled) = channel();
        let (empty, take) = channel();
        for _ in 0..BUFFERS {
            // the receiver is alive: it is in this very function
            let _ = empty.send(vec![0; BUFFER]);
        }
        std::thread::spawn(move || fill(source, &take, &give));
        ReadAhead { filled, empty, current: Vec::new(), at: 0 }
    }
}

/// Fills buffer after buffer until the source ends or breaks, or nobody takes them.
fn fill(mut source: impl Read, take: &Receiver<Vec<u8>>, give: &Sender<io::Result<Vec<u8>>>) {
    while let Ok(mut buffer) = take.recv() {
        buffer.resize(BUFFER, 0);
        let (length, outcome) = read_full(&mut source, &mut buffer);
        buffer.truncate(length);
        let last = length < BUFFER;
        let lost = length > 0 && give.send(Ok(buffer)).is_err();
        if let Err(error) = outcome {
            // nobody listens: nothing is to be told
            let _ = give.send(Err(error));
        }
        if last || lost {
            return;
        }
    }
}

/// How far the buffer was filled, and what stopped it before its end.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> (usize, io::Result<()>) {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Err(error)),
        }
    }
    (length, Ok(()))
}

impl Read for ReadAhead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            let used = std::mem::take(&mut self.current);
            if used.capacity() > 0 {
                // the thread has ended where this fails, and needs no buffer
                let _ = self.empty.send(used);
            }
            self.at = 0;
            match self.filled.recv() {
                Ok(next) => self.current = next?,
                Err(_) => return Ok(0),
            }
        }
        let count = out.len().min(self.current.len() - self.at);
        out[..count].copy_from_slice(&self.current[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `left` bytes of a ramp in odd pieces, then an error.
    struct Breaks {
        given: usize,
        left: usize,
    }

    impl Read for Breaks {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = out.len().min(self.left).min(70_001);
            if count == 0 {
                return Err(io::Error::other("torn"));
            }
            out[..count].iter_mut().enumerate().for_each(|(i, byte)| *byte = ((self.given + i) % 251) as u8);
            (self.given, self.left) = (self.given + count, self.left - count);
            Ok(count)
        }
    }

    #[test]
    fn every_byte_comes_in_order_and_the_error_where_it_arose() {
        for length in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER * BUFFERS + 17] {
            let mut reader = ReadAhead::new(Breaks { given: 0, left: length });
            let mut bytes = Vec::new();
            let error = reader.read_to_end(&mut bytes).unwrap_err();
            assert_eq!((error.to_string().as_str(), bytes.len()), ("torn", length));
            assert!(bytes.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i % 251));
        }
    }

    #[test]
    fn an_ended_source_stays_ended() {
        let mut reader = ReadAhead::new(io::Cursor::new(vec![7; 10]));
        let mut bytes = Vec::new();
        assert_eq!((reader.read_to_end(&mut bytes).unwrap(), reader.read(&mut [0; 4]).unwrap()), (10, 0));
    }
}
