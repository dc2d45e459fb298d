//! Makes `../src/wire/*.rs` from `../proto`. With `--check` it writes nothing and fails where what is committed differs.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const PROTOS: [&str; 8] = [
    "ambient/control/v1/capture.proto",
    "ambient/control/v1/node.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "istio/workload/workload.proto",
    "spiffe/workload/workload.proto",
    "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto",
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let check = std::env::args().skip(1).any(|a| a == "--check");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = here.join("../src/wire");
    let made = scratch()?;
    let descriptors = protox::compile(PROTOS, [here.join("../proto")])?;
    let mut config = prost_build::Config::new();
    // The Workload API is in no package.
    config.default_package_filename("spiffe.workload");
    // The same contents are to be the same bytes, whoever writes them.
    config.btree_map([".istio.workload"]);
    tonic_prost_build::configure()
        .out_dir(&made)
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(descriptors, config)?;
    let mut stale = false;
    for entry in fs::read_dir(&made)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let new = fs::read(&path)?;
        let target = committed.join(name);
        if fs::read(&target).ok().as_ref() == Some(&new) {
            continue;
        }
        stale = true;
        if check {
            eprintln!("{} is not what proto/ makes: run this program without --check", target.display());
        } else {
            fs::create_dir_all(&committed)?;
            fs::write(&target, new)?;
            println!("wrote {}", target.display());
        }
    }
    fs::remove_dir_all(&made)?;
    Ok(if stale && check { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn scratch() -> Result<PathBuf, std::io::Error> {
    let path = std::env::temp_dir().join(format!("ambient-control-codegen-{}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(path)
}
