//! A bound on what costs the receiver something and carries nothing.

/// What a peer may still do that brings neither of us further. Refilled as time and data pass, so that no honest peer ever
/// comes near it, and whoever floods is cut off.
#[derive(Debug)]
pub(super) struct Manners {
    left: u32,
    /// Bytes that count towards the next point.
    bytes: u32,
}

impl Default for Manners {
    fn default() -> Self {
        Self { left: PATIENCE, bytes: 0 }
    }
}

impl Manners {
    /// The peer did something that cost `points`. False when patience is at its end.
    pub(super) fn spend(&mut self, points: u32) -> bool {
        match self.left.checked_sub(points) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// Data went one way or the other.
    pub(super) fn earn(&mut self, bytes: u32) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= POINT {
            self.left = self.left.saturating_add(self.bytes / POINT).min(PATIENCE);
            self.bytes %= POINT;
        }
    }

    /// Some seconds have passed.
    pub(super) fn forgive(&mut self) {
        self.left = PATIENCE;
    }
}

/// A frame that carries nothing: PING, an empty DATA, one for a stream that is gone; an entry of SETTINGS.
pub(super) const FRAME: u32 = 1;

/// A stream that was opened and reset before it was answered, or that broke the rules: we may have begun to connect.
pub(super) const ABANDONED: u32 = 10;

/// Between two ticks of the driver's clock: 10,000 frames, or 1,000 streams.
const PATIENCE: u32 = 10_000;

/// Bytes of data that make up for a frame without any.
const POINT: u32 = 1 << 10;
