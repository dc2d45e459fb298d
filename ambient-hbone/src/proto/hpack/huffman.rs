//! The code of RFC 7541, appendix B. It is canonical: codes of one length are consecutive numbers in the order of their
//! bytes, so that the lengths say all.

use super::Garbled;

/// Decodes `text` and appends it to `out`.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Garbled> {
    // The shortest code has five bits.
    out.reserve(text.len() * 8 / 5);
    let (mut code, mut length) = (0_u32, 0_usize);
    for byte in text {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let within = code.wrapping_sub(CODES.first[length]);
            if within < CODES.count[length] {
                out.push(CODES.bytes[(CODES.offset[length] + within) as usize]);
                (code, length) = (0, 0);
            } else if length == LONGEST {
                // Thirty bits that are nobody's code are the end mark, which no text holds.
                return Err(Garbled);
            }
        }
    }
    // What is left over is the beginning of the end mark, and no whole byte of it.
    if length < 8 && code == (1 << length) - 1 {
        Ok(())
    } else {
        Err(Garbled)
    }
}

const LONGEST: usize = 30;

struct Codes {
    /// The lowest code of each length, how many there are, and where their bytes begin.
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    offset: [u32; LONGEST + 1],
    /// In the order of their codes.
    bytes: [u8; 256],
}

static CODES: Codes = codes();

const fn codes() -> Codes {
    let mut codes = Codes {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        bytes: [0; 256],
    };
    let (mut code, mut placed, mut length) = (0, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        codes.first[length] = code;
        codes.offset[length] = placed;
        let mut byte = 0;
        while byte < 256 {
            if LENGTHS[byte] as usize == length {
                codes.bytes[placed as usize] = byte as u8;
                codes.count[length] += 1;
                placed += 1;
                code += 1;
            }
            byte += 1;
        }
        length += 1;
    }
    codes
}

/// Bits of the code of each byte.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
