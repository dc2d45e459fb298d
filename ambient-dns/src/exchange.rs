//! A query on its way upstream: which ID it has there, and what is an answer to it. Pure.

use crate::wire::{self, Extras, Header};

#[cfg(test)]
mod tests;

/// A query that was sent upstream by UDP.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The client's.
    id: u16,
    /// What it was sent with.
    sent: u16,
    opcode: u16,
    questions: u16,
    /// The questions as they were asked; `None` where they could not be read.
    asked: Option<Vec<u8>>,
}

/// Why a message is not the answer to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error("it is too short")]
    Short,
    #[error("it is a query itself")]
    Query,
    #[error("it has another ID")]
    Id,
    #[error("it is of another operation")]
    Operation,
    #[error("it is to another question")]
    Question,
}

impl Exchange {
    /// The exchange for a query, and the bytes to send: the query itself, with an ID that is random (`draw`) whatever the
    /// client's generator is worth. A signed query keeps its ID: [SIG(0)] signs it. `None` for what is no query.
    ///
    /// [SIG(0)]: https://www.rfc-editor.org/rfc/rfc2931#section-3
    pub(crate) fn new(query: &[u8], draw: u64) -> Option<(Self, Vec<u8>)> {
        let header = Header::read(query).filter(|header| !header.is_response())?;
        let signed = Extras::read(query, &header).is_ok_and(|extras| extras.signed);
        let [.., high, low] = draw.to_be_bytes();
        let sent = if signed { header.id } else { u16::from_be_bytes([high, low]) };
        let mut bytes = query.to_vec();
        wire::set_id(&mut bytes, sent);
        let exchange = Self {
            id: header.id,
            sent,
            opcode: header.opcode(),
            questions: header.questions,
            asked: wire::questions(query, &header).map(<[u8]>::to_vec),
        };
        Some((exchange, bytes))
    }

    /// Takes a message that came from the server that was asked; if it is the answer, its ID becomes the client's, and
    /// nothing else of it changes.
    ///
    /// # Errors
    /// When it is not the answer: another may still come.
    pub(crate) fn settle(&self, reply: &mut [u8]) -> Result<(), Mismatch> {
        let header = Header::read(reply).ok_or(Mismatch::Short)?;
        if !header.is_response() {
            return Err(Mismatch::Query);
        }
        if header.id != self.sent {
            return Err(Mismatch::Id);
        }
        if header.opcode() != self.opcode {
            return Err(Mismatch::Operation);
        }
        if !self.answers(reply, &header) {
            return Err(Mismatch::Question);
        }
        wire::set_id(reply, self.id);
        Ok(())
    }

    /// Whether a reply repeats the questions, their names in any case. A server that refuses, or is told something, may
    /// leave them out ([RFC 2136 3.8](https://www.rfc-editor.org/rfc/rfc2136#section-3.8)); one that gives records must not.
    fn answers(&self, reply: &[u8], header: &Header) -> bool {
        let Some(asked) = &self.asked else { return true };
        if header.questions == 0 && self.questions > 0 {
            return header.code() != 0 || self.opcode != wire::QUERY;
        }
        if header.questions != self.questions {
            return false;
        }
        // Names after the first may be compressed in one and not in the other.
        let first = |bytes: &[u8]| wire::questions(bytes, &header.with_questions(self.questions.min(1))).map(<[u8]>::to_vec);
        match first(reply) {
            Some(repeated) => asked
                .get(..repeated.len())
                .is_some_and(|asked| asked.eq_ignore_ascii_case(&repeated)),
            None => false,
        }
    }
}
