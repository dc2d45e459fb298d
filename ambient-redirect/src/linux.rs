//! Network namespaces, the sockets made in them, and the rules put into them.
//!
//! setns moves one *thread*. Whatever needs it runs on threads of this module's own, never on a runtime's worker, which
//! would take other tasks along into the namespace.

mod datagrams;
mod mapped;
mod names;
mod netns;
pub(crate) mod option;
mod own;
mod own_path;
mod preflight;
mod probes;
mod processes;
mod proof;
mod rules;
mod seqpacket;
mod slice;
mod sockets;
mod source_ports;
mod stock;
mod told;
mod watcher;

pub use datagrams::Datagrams;
// Of the process or a thread, and of no namespace: they are here because `unsafe` stands nowhere else that a program may ask. Tools
// of this workspace, not a promise to others.
#[doc(hidden)]
pub use mapped::unmap_binary;
pub(crate) use names::Names;
pub(crate) use netns::is_shortage;
pub use netns::{Netns, NetnsError, NetnsId};
pub use own::Direction;
pub(crate) use own::Own;
pub use own_path::StreamListener;
pub use preflight::{Part, PreflightError, preflight};
pub use probes::{NodeSide, ProbeDifference};
pub use processes::{FindError, Hidden, Processes, namespace_of};
pub(crate) use proof::Prover;
pub use proof::{Proof, Way, Ways};
pub use rules::{ApplyError, Aside, Change, Difference, DryRun, Inside, Line, Mark, Owner, RulePlace, Segments, Stranger, Thing};
pub(crate) use rules::{Joined, Listing, Looked, MOST_HELD, Outsider, Sought};
pub use seqpacket::{Packet, Peer, ReceiveError, SeqPacket, SeqPacketListener};
#[doc(hidden)]
pub use slice::{Slice, Slices};
pub use sockets::{Sharer, Sockets, cut_when_dropped, leave_port, original_destination};
pub(crate) use told::Told;
pub use watcher::Watcher;
