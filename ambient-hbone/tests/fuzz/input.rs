//! Choices out of bytes.

/// What is left of an input. Once it has run out every choice is zero.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number below `most`, which is at least one and at most 256.
    pub(super) fn below(&mut self, most: usize) -> usize {
        usize::from(self.byte()) % most
    }

    /// A number of bytes: small ones as often as large ones.
    pub(super) fn size(&mut self) -> usize {
        let byte = self.byte();
        usize::from(byte & 0x0f) << (byte >> 4)
    }

    /// The next `n` bytes, as far as there are.
    pub(super) fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// As many bytes as the next says.
    pub(super) fn text(&mut self) -> &'a [u8] {
        let n = self.byte();
        self.take(usize::from(n))
    }
}
