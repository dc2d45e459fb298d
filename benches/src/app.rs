//! The application at the end of each way, and what its clients ask of it.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use crate::node::{self, Node, Place, SMALL};

/// After each message of [`Work::Paced`].
const PAUSE: Duration = Duration::from_millis(1);

/// What is done, piece by piece. An order is the first byte of a connection, or the next one after what was ordered
/// before; but for [`Touch`](Self::Touch) the number of pieces follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Chunks to the application, which answers the last with a byte.
    Upload = b'u' as isize,
    /// Chunks from the application.
    Download = b'd' as isize,
    /// Messages to the application, which sends each back.
    Echo = b'e' as isize,
    /// The same, with a pause after each that comes back: what counts is what it costs.
    Paced = b'p' as isize,
    /// A connection for one byte to the application and back, then closed.
    Touch = b't' as isize,
}

impl Work {
    /// Bytes of a piece, each way that it goes: a chunk of 256 KiB, a message of 1 KiB, or one byte.
    pub fn bytes(self) -> usize {
        match self {
            Self::Upload | Self::Download => 256 << 10,
            Self::Echo | Self::Paced => 1 << 10,
            Self::Touch => 1,
        }
    }

    /// Whether the bytes are what counts, not the pieces.
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::Upload | Self::Download)
    }

    /// The client's part: so many pieces, in order, on a connection that stands, or each on a connection of its own.
    pub(crate) async fn carry_out(self, entrance: SocketAddr, connection: &mut Option<TcpStream>, pieces: u32) -> io::Result<()> {
        let Some(connection) = connection else {
            for _ in 0..pieces {
                let mut connection = node::connect(entrance).await?;
                connection.write_u8(self as u8).await?;
                connection.read_u8().await?;
            }
            return Ok(());
        };
        connection.write_all(&self.order(pieces)).await?;
        let mut buffer = vec![7; self.bytes()];
        for _ in 0..pieces {
            if self != Self::Download {
                connection.write_all(&buffer).await?;
            }
            if self != Self::Upload {
                connection.read_exact(&mut buffer).await?;
            }
            if self == Self::Paced {
                time::sleep(PAUSE).await;
            }
        }
        if self == Self::Upload {
            connection.read_u8().await?;
        }
        Ok(())
    }

    /// A connection that orders a download, and reads nothing of it.
    pub(crate) async fn stall(entrance: SocketAddr) -> io::Result<TcpStream> {
        let socket = node::socket(entrance.ip(), Some(SMALL))?;
        let mut connection = socket.connect(entrance).await?;
        connection.set_nodelay(true)?;
        connection.write_all(&Self::Download.order(u32::MAX)).await?;
        Ok(connection)
    }

    /// What is written to order so many pieces.
    pub fn order(self, pieces: u32) -> [u8; 5] {
        let [a, b, c, d] = pieces.to_be_bytes();
        [self as u8, a, b, c, d]
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            b'u' => Self::Upload,
            b'd' => Self::Download,
            b'e' => Self::Echo,
            b'p' => Self::Paced,
            _ => Self::Touch,
        }
    }
}

/// Starts the application.
pub(crate) fn start(place: &Place) -> Node {
    Node::listen(place, |mut stream| async move {
        // Ends with the client.
        let _ = serve(&mut stream).await;
    })
}

async fn serve(stream: &mut TcpStream) -> io::Result<()> {
    loop {
        let work = Work::from_byte(stream.read_u8().await?);
        if work == Work::Touch {
            stream.write_u8(0).await?;
            continue;
        }
        let pieces = stream.read_u32().await?;
        let mut buffer = vec![7; work.bytes()];
        for _ in 0..pieces {
            if work != Work::Download {
                stream.read_exact(&mut buffer).await?;
            }
            if work != Work::Upload {
                stream.write_all(&buffer).await?;
            }
        }
        if work == Work::Upload {
            stream.write_u8(0).await?;
        }
    }
}
