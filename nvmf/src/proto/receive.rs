//! Receiving PDUs: which bytes are wanted next. Shared by both roles.
//!
//! The machine keeps the current header (at most [`HEADER_BYTES_MAX`] bytes) and never sees
//! payload: it says how much of it is left, its owner says where it goes, the shell moves it. Data
//! digests are computed by the shell over the place where the data came to lie.

use super::pdu::{CommonHeader, Extent, Fatal, Framing, HEADER_BYTES_MAX, Header, Role};
use zerocopy::FromBytes;

/// What the stream must deliver next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Exactly this many more bytes of header, for [`Receiver::header`].
    Header {
        /// How many.
        len_bytes: u32,
    },
    /// Up to this much payload, in pieces if need be, for [`Receiver::payload`].
    Payload {
        /// How much is left of this PDU.
        left_bytes: u32,
    },
    /// The four bytes of a data digest, for [`Receiver::digest_done`].
    Digest,
}

/// What remains after a piece of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More payload.
    More,
    /// All payload is in; its digest follows.
    DigestFollows,
    /// The PDU is complete.
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Common,
    Rest(Extent),
    Payload { left_bytes: u32, digest: bool },
    Digest,
}

/// The receive side of one connection.
#[derive(Debug)]
pub struct Receiver {
    sender: Role,
    framing: Framing,
    data_bytes_max: u32,
    state: State,
    header: [u8; HEADER_BYTES_MAX],
    have: usize,
}

impl Receiver {
    /// A receiver of what `sender` sends, before connection set-up: no digests. PDUs with more
    /// data than `data_bytes_max` are fatal.
    pub fn new(sender: Role, data_bytes_max: u32) -> Self {
        Self {
            sender,
            framing: Framing::default(),
            data_bytes_max,
            state: State::Common,
            header: [0; HEADER_BYTES_MAX],
            have: 0,
        }
    }

    /// What was agreed at set-up; applies from the next PDU on.
    pub fn set_framing(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// What comes next.
    pub fn wanted(&self) -> Wanted {
        match self.state {
            State::Common => Wanted::Header { len_bytes: 8 },
            State::Rest(extent) => Wanted::Header {
                len_bytes: extent.header_bytes - 8,
            },
            State::Payload { left_bytes, .. } => Wanted::Payload { left_bytes },
            State::Digest => Wanted::Digest,
        }
    }

    /// Takes the header bytes that were wanted. `None`: the rest of the header is wanted next.
    ///
    /// # Errors
    /// [`Fatal`] if the peer broke the protocol; nothing may be received after that.
    ///
    /// Panics if `bytes` is not exactly what [`Receiver::wanted`] said.
    pub fn header(&mut self, bytes: &[u8]) -> Result<Option<(Header, Extent)>, Fatal> {
        let Wanted::Header { len_bytes } = self.wanted() else {
            panic!("receive: header bytes in the middle of {:?}", self.state);
        };
        assert_eq!(bytes.len(), len_bytes as usize);
        if self.state == State::Common {
            self.have = 0;
        }
        self.header[self.have..self.have + bytes.len()].copy_from_slice(bytes);
        self.have += bytes.len();
        let State::Rest(extent) = self.state else {
            let common = CommonHeader::read_from_bytes(bytes).expect("eight bytes");
            let extent = self
                .framing
                .check(&common, self.sender, self.data_bytes_max)?;
            self.state = State::Rest(extent);
            return Ok(None);
        };
        let header = Header::decode(self.framing, &extent, &self.header[..self.have])?;
        self.state = if extent.data_bytes > 0 {
            State::Payload {
                left_bytes: extent.data_bytes,
                digest: extent.data_digest,
            }
        } else {
            State::Common
        };
        Ok(Some((header, extent)))
    }

    /// Takes note of payload that was moved to its place.
    ///
    /// Panics if it is more than was left.
    pub fn payload(&mut self, len_bytes: u32) -> Progress {
        let State::Payload { left_bytes, digest } = self.state else {
            panic!("receive: payload in the middle of {:?}", self.state);
        };
        assert!(
            len_bytes <= left_bytes,
            "receive: {len_bytes} of {left_bytes} bytes"
        );
        let left_bytes = left_bytes - len_bytes;
        if left_bytes > 0 {
            self.state = State::Payload { left_bytes, digest };
            return Progress::More;
        }
        self.state = if digest { State::Digest } else { State::Common };
        if digest {
            Progress::DigestFollows
        } else {
            Progress::Complete
        }
    }

    /// The digest was read (and judged by the shell): the PDU is complete.
    pub fn digest_done(&mut self) {
        assert_eq!(self.state, State::Digest);
        self.state = State::Common;
    }

    /// The header bytes at hand, to be quoted in a terminate request.
    pub fn quote(&self) -> &[u8] {
        &self.header[..self.have]
    }
}

#[cfg(test)]
mod test {
    use super::super::pdu::{Digests, H2cData};
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn a_pdu_is_received_piece_by_piece() {
        let framing = Framing {
            digests: Digests {
                header: true,
                data: true,
            },
            pda: 0,
        };
        let data = H2cData {
            datal: 100.into(),
            ..H2cData::new_zeroed()
        };
        let mut out = [0; HEADER_BYTES_MAX];
        let header = Header::H2cData { data, last: true };
        let written = framing.encode(&header, 100, &mut out);
        assert_eq!(written, 28);

        let mut receiver = Receiver::new(Role::Host, 4096);
        receiver.set_framing(framing);
        assert_eq!(receiver.wanted(), Wanted::Header { len_bytes: 8 });
        assert_eq!(receiver.header(&out[..8]), Ok(None));
        assert_eq!(receiver.wanted(), Wanted::Header { len_bytes: 20 });
        let (seen, extent) = receiver.header(&out[8..28]).unwrap().unwrap();
        assert_eq!((seen, extent.data_bytes), (header, 100));
        assert_eq!(receiver.payload(99), Progress::More);
        assert_eq!(receiver.wanted(), Wanted::Payload { left_bytes: 1 });
        assert_eq!(receiver.payload(1), Progress::DigestFollows);
        assert_eq!(receiver.wanted(), Wanted::Digest);
        receiver.digest_done();
        assert_eq!(receiver.wanted(), Wanted::Header { len_bytes: 8 });
    }
}
