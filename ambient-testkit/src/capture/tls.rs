//! Whether a stream is TLS records.

/// Walks a stream's records without keeping its bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Walk {
    header: [u8; 5],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the record's body that are still to come.
    body: usize,
    records: u64,
    broken: bool,
}

impl Walk {
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.broken {
            if self.body > 0 {
                let part = self.body.min(bytes.len());
                bytes = &bytes[part..];
                self.body -= part;
                continue;
            }
            let part = (5 - self.have).min(bytes.len());
            self.header[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            self.broken = !self.plausible();
            if self.have == 5 {
                self.have = 0;
                self.body = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                self.records += 1;
            }
        }
    }

    /// Every byte so far belongs to a record, and there was one.
    pub(super) fn is_tls(&self) -> bool {
        !self.broken && self.records > 0
    }

    /// As much of a record's header as is there (RFC 8446, 5.1): the first record is a handshake or an alert, later
    /// ones may also be data; the version says 3.1 to 3.4, the length fits a protected record, and is 0 for none.
    fn plausible(&self) -> bool {
        let header = &self.header[..self.have];
        let kind = match header.first() {
            Some(20 | 23) => self.records > 0,
            Some(21 | 22) | None => true,
            _ => false,
        };
        let version = header.get(1).is_none_or(|v| *v == 3) && header.get(2).is_none_or(|v| (1..=4).contains(v));
        let length = self.have < 5 || (1..=16_384 + 256).contains(&u16::from_be_bytes([header[3], header[4]]));
        kind && version && length
    }
}
