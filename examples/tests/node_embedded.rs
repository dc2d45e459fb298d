//! A node within another program: the example, run as it is.

#[path = "../embedded_node.rs"]
mod example;

use std::process::ExitCode;

// With a main of its own: namespaces are entered before there is a second thread.
fn main() -> ExitCode {
    example::main()
}
