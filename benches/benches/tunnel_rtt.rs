//! Tunnels beside direct TCP and beside bare TLS, over a link on which a round trip takes 10 ms: client and near proxy in a
//! network namespace, far proxy and application in another, as root or not.

use std::{error::Error, net::IpAddr, sync::Arc, time::Duration};

use ambient_benches::{Load, Sides, app::Work, node::Place, report};
use ambient_testkit::{End, World, link_delayed, world};
use ipnet::IpNet;

fn main() -> Result<(), Box<dyn Error>> {
    // While this is the only thread.
    match world::enter_or_skip("tunnel_rtt")? {
        Some(world) => run(&world),
        None => Ok(()),
    }
}

fn run(world: &World) -> Result<(), Box<dyn Error>> {
    let [near, far] = ["near", "far"].map(|name| world.namespace(name));
    let (near, far) = (Arc::new(near?), Arc::new(far?));
    let [at_near, at_far] = ["10.0.0.1", "10.0.0.2"].map(str::parse::<IpAddr>);
    let (at_near, at_far) = (at_near?, at_far?);
    for namespace in [&near, &far] {
        // A window of 32 MiB, that is 25 Gbit/s; and none of it is lost in a pause between two samples.
        for buffer in ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"] {
            namespace.sysctl(buffer, "4096 131072 33554432")?;
        }
        namespace.sysctl("net/ipv4/tcp_slow_start_after_idle", "0")?;
    }
    let link = link_delayed(
        &End::new(&near, "slow0").address(IpNet::new(at_near, 24)?),
        &End::new(&far, "slow0").address(IpNet::new(at_far, 24)?),
        Duration::from_millis(5),
    );
    let _link = match link {
        Ok(link) => link,
        Err(e) => {
            ambient_testkit::skipped(format_args!("tunnel_rtt: {e}"));
            return Ok(());
        }
    };
    let sides = Sides {
        near: Place::namespace(&near, at_near),
        far: Place::namespace(&far, at_far),
        redirected: false,
    };
    report::run(&LOADS, &sides);
    Ok(())
}

const LOADS: [Load; 2] = [
    Load::new("upload_10ms/1", Work::Upload, 1).sampled_for(Duration::from_secs(1)),
    Load::new("download_10ms/1", Work::Download, 1).sampled_for(Duration::from_secs(1)),
];
