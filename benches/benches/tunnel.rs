//! Tunnels beside direct TCP and beside bare TLS, over loopback, in one run: the ratio to bare TLS is what is read.

use ambient_benches::{Load, Sides, app::Work, report};

fn main() {
    report::run(&LOADS, &Sides::loopback());
}

const LOADS: [Load; 13] = [
    Load::new("upload/1", Work::Upload, 1),
    Load::new("upload/8", Work::Upload, 8),
    Load::new("upload/64", Work::Upload, 64),
    Load::new("download/1", Work::Download, 1),
    Load::new("download/8", Work::Download, 8),
    Load::new("download/64", Work::Download, 64),
    Load::new("echo/1", Work::Echo, 1),
    Load::new("echo/32", Work::Echo, 32),
    Load::new("echo/256", Work::Echo, 256),
    Load::new("connect/1", Work::Touch, 1),
    Load::new("connect/16", Work::Touch, 16),
    Load::new("cold/1", Work::Touch, 1).cold(),
    Load::new("beside_stalled/99", Work::Echo, 1).beside_stalled(99),
];
