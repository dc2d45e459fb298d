//! `ambient pods`, as somebody asks it who does not know what is wrong.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use ambient_redirect::netlink::{BaseChain, Batch, Expr, Family, Nftables};
use ambient_testkit::{World, harness::Outcome};
use serde_json::{Value, json};

use super::ground::{Failure, Ground, until};

const NODE: &str = "node-1";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn how_pods_stand_is_told_in_plain_words(world: &World) -> Outcome {
    let mut ground = Ground::new(world)?;
    let told = tell(&mut ground);
    if told.is_err() {
        println!("{}", ground.logs());
    }
    told
}

fn tell(ground: &mut Ground) -> Outcome {
    ground.ready(NODE)?;
    for pod in ["cart", "late", "squat", "table"] {
        ground.idle(NODE, pod, pod == "cart")?;
    }
    let kept = open_before_joining(ground)?;
    let squatter = ground.cluster.pod("demo", "squat")?;
    let squatter = squatter
        .namespace()
        .ok_or("no namespace")?
        .run(|| TcpListener::bind("[::]:15006"))??;
    let table = ground.cluster.pod("demo", "table")?.namespace().ok_or("no namespace")?;
    table.run(|| table_of_somebody_else(true))?;
    for pod in ["late", "squat", "table"] {
        ground.mean(pod, true)?;
    }
    state(ground, "demo/late", "in")?;
    state(ground, "demo/squat", "refused")?;
    state(ground, "demo/table", "refused")?;
    all_of_them(ground)?;
    one_of_them(ground)?;
    what_is_wrong(ground)?;
    who_asks_wrongly(ground)?;
    what_others_put_before(ground)?;
    what_was_damaged(ground)?;
    which_of_them(ground)?;
    // What was in the way is gone, and nobody has to do anything more.
    drop((squatter, kept));
    let table = ground.cluster.pod("demo", "table")?.namespace().ok_or("no namespace")?;
    table.run(|| table_of_somebody_else(false))?;
    state(ground, "demo/squat", "in")?;
    state(ground, "demo/table", "in")?;
    Ok(())
}

fn state(ground: &mut Ground, pod: &str, wanted: &str) -> Result<Value, Failure> {
    until(PATIENCE, || {
        let told = match ground.told(NODE, pod) {
            Ok(told) => told,
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(if told["state"] == wanted { Ok(told) } else { Err(told.to_string()) })
    })
}

/// A connection of `late` to its node.
fn open_before_joining(ground: &mut Ground) -> Result<(TcpListener, TcpStream), Failure> {
    let node = ground.cluster.node(NODE)?;
    let to = (node.addresses().v4, 7000);
    let listener = node.namespace().run(|| TcpListener::bind(("0.0.0.0", 7000)))??;
    let late = ground.cluster.pod("demo", "late")?.namespace().ok_or("no namespace")?;
    Ok((listener, late.run(|| TcpStream::connect(to))??))
}

fn table_of_somebody_else(there: bool) {
    let mut batch = Batch::default();
    match there {
        true => batch.add_table(Family::Inet, "ambient-nat", b""),
        false => batch.delete_table(Family::Inet, "ambient-nat"),
    }
    Nftables::open().unwrap().commit(batch, None).unwrap();
}

fn all_of_them(ground: &mut Ground) -> Outcome {
    let (code, out, err) = ground.ambient(NODE, &["pods"])?;
    assert_eq!((code, &*err), (0, ""), "{out}");
    let head = "POD DESIRED CAPTURED PROVEN OUT BY IN BY LISTENERS RULES IN/OUT KEPT REPAIRS";
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert_eq!(out.lines().next().map(words).as_deref(), Some(head), "{out}");
    let row = |pod: &str| {
        out.lines()
            .find(|l| l.starts_with(pod))
            .map(words)
            .unwrap_or_else(|| panic!("{out}"))
    };
    let cart = row("demo/cart ");
    assert!(
        cart.starts_with("demo/cart yes yes 20") && cart.contains("15001 15006 15008 15053 in force"),
        "{out}"
    );
    assert!(
        row("demo/late ").ends_with(" 1 0"),
        "one connection is kept, and nothing was repaired: {out}"
    );
    assert!(
        row("demo/squat ").starts_with("demo/squat yes refused") && row("demo/table ").starts_with("demo/table yes refused"),
        "{out}"
    );
    for wrong in [
        "demo/late: 1 of its connections are from before it joined",
        "demo/squat: it is not captured: the proxy cannot listen: a process of the pod listens on port tcp/15006, which is the proxy's",
        "demo/table: it is not captured: the rules cannot be put in force: the namespace holds a table inet ambient-nat that is not ours",
    ] {
        assert!(out.contains(wrong), "{wrong} is not in {out}");
    }
    assert!(
        !out.contains("demo/cart:") && out.contains("probes of the kubelet are let through"),
        "{out}"
    );
    let (code, out, _) = ground.ambient(NODE, &["pods", "--json"])?;
    let all: Value = serde_json::from_str(&out)?;
    assert_eq!((code, all["pods"].as_array().map(Vec::len)), (0, Some(4)), "{out}");
    // The other node knows its own pods alone.
    let (code, out, _) = ground.ambient("node-2", &["pods"])?;
    assert!(code == 0 && !out.contains("cart"), "{out}");
    Ok(())
}

fn one_of_them(ground: &mut Ground) -> Outcome {
    let (code, out, err) = ground.ambient(NODE, &["pods", "demo/cart"])?;
    assert_eq!((code, &*err), (0, ""), "{out}");
    for line in [
        "captured             yes, since 20",
        "listeners            15001 15006 15008 15053",
        "rules                in force",
        "segments             the loopback device's\n",
        "\nnothing is wrong\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in {out}");
    }
    let (_, out, _) = ground.ambient(NODE, &["pods", "demo/late"])?;
    assert!(out.contains("kept connections     1\n") && out.contains(":7000"), "{out}");
    let aside =
        "segments             IPv4 the link's: a connection from before the capture goes around the proxy; IPv6 the loopback device's\n";
    assert!(out.contains(aside), "{out}");
    let told = ground.told(NODE, "demo/cart")?;
    let listener = |port: u16, protocol: &str| json!({ "port": port, "protocol": protocol, "state": "up" });
    let tcp = [15001, 15006, 15008, 15053].map(|port| listener(port, "TCP"));
    let all: Vec<Value> = tcp.into_iter().chain([listener(15053, "UDP")]).collect();
    assert_eq!((&told["listeners"], &told["captured"]), (&json!(all), &json!(true)));
    Ok(())
}

fn what_is_wrong(ground: &mut Ground) -> Outcome {
    let (_, out, _) = ground.ambient(NODE, &["pods", "squat"])?;
    assert!(
        out.contains("wrong: it is not captured") && out.contains("free the ports 15001, 15006"),
        "{out}"
    );
    let (_, out, _) = ground.ambient(NODE, &["pods", "table"])?;
    assert!(out.contains("remove or rename that table"), "{out}");
    let told = ground.told(NODE, "demo/squat")?;
    assert_eq!(told["wrong"][0]["code"], json!("port-taken"), "{told}");
    let told = ground.told(NODE, "demo/table")?;
    assert_eq!(told["wrong"][0]["code"], json!("foreign-table"), "{told}");
    assert_eq!((&told["captured"], &told["rules"]), (&json!(false), &json!("not proven")), "{told}");
    Ok(())
}

fn who_asks_wrongly(ground: &mut Ground) -> Outcome {
    for (args, said) in [
        (&["pods", "nobody"][..], "no pod of this node is called nobody: it knows of demo/"),
        (
            &["pods", "--admin", "127.0.0.1:1"],
            "is a node running here? --admin names another address",
        ),
    ] {
        let (code, out, err) = ground.ambient(NODE, args)?;
        assert_eq!((code, &*out), (1, ""), "{args:?}: {err}");
        assert!(
            err.starts_with("ambient pods: ") && err.contains(said) && err.lines().count() == 1,
            "{args:?}: {err}"
        );
    }
    Ok(())
}

/// Rules of somebody else that the kernel asks before the capture's: the pod stays captured, and whose they are is told everywhere.
fn what_others_put_before(ground: &mut Ground) -> Outcome {
    let cart = ground.cluster.pod("demo", "cart")?.namespace().ok_or("no namespace")?;
    cart.run(|| {
        let mut batch = Batch::default();
        batch.add_table(Family::Inet, "theirs", b"");
        batch.add_base_chain(Family::Inet, "theirs", "output", &BaseChain::nat_output());
        let mut rule = Expr::tcp_to([10, 9, 9, 9].into(), 5432);
        rule.extend(Expr::dnat(([10, 9, 9, 8], 5433).into()));
        batch.add_rule(Family::Inet, "theirs", "output", &rule);
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })?;
    let rule = "table inet theirs, chain output: of what goes out, TCP to port 5432 gets another destination, port 5433";
    let told = until(PATIENCE, || {
        let told = ground.told(NODE, "demo/cart")?;
        Ok(if told["foreignRules"] == json!([rule]) {
            Ok(told)
        } else {
            Err(told.to_string())
        })
    })?;
    assert_eq!((&told["captured"], &told["repairs"]), (&json!(true), &json!(0)), "{told}");
    let (_, out, _) = ground.ambient(NODE, &["pods", "cart"])?;
    assert!(
        out.contains(&format!(
            "what they take does not reach the proxy: {rule}\n   ->  what they send out of the pod"
        )),
        "{out}"
    );
    let metric = |ground: &Ground, count| {
        let line = format!("\nambient_pods_with_foreign_rules {count}\n");
        until(PATIENCE, || {
            let page = ground.page(NODE, 15020, "/metrics")?;
            Ok(if page.contains(&line) { Ok(()) } else { Err(page) })
        })
    };
    metric(ground, 1)?;
    let ready = ground.page(NODE, 15021, "/healthz/ready")?;
    assert!(
        ready.contains("1 of the pods have rules of others") && ready.contains("demo/cart"),
        "{ready}"
    );
    let log = fs::read_to_string(ground.cluster.node(NODE)?.log())?;
    let line = log
        .lines()
        .find(|line| line.contains("rules of others come before the pod's capture"));
    assert!(
        line.is_some_and(|line| line.contains(rule) && line.contains("demo/cart")),
        "{line:?}"
    );
    let cart = ground.cluster.pod("demo", "cart")?.namespace().ok_or("no namespace")?;
    cart.run(|| {
        let mut batch = Batch::default();
        batch.delete_table(Family::Inet, "theirs");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })?;
    metric(ground, 0)?;
    let ready = ground.page(NODE, 15021, "/healthz/ready")?;
    assert!(!ready.contains("rules of others"), "{ready}");
    let (_, out, _) = ground.ambient(NODE, &["pods", "cart"])?;
    assert!(out.contains("\nnothing is wrong\n"), "{out}");
    Ok(())
}

/// A name that two namespaces have.
fn which_of_them(ground: &mut Ground) -> Outcome {
    ground.cluster.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: other}\n\
         spec: {hostNetwork: true, nodeSelector: {kubernetes.io/hostname: node-1}, containers: [{name: peer, image: peer, args: [cart, \"0\", /dev/null]}]}\n",
    )?;
    let err = until(PATIENCE, || {
        let (code, out, err) = ground.ambient(NODE, &["pods", "cart"])?;
        Ok(if code == 1 { Ok(err) } else { Err(out) })
    })?;
    assert_eq!(
        err,
        "ambient pods: 2 pods of this node are called cart; ask for one of them by NAMESPACE/NAME: demo/cart, other/cart\n"
    );
    let (code, out, _) = ground.ambient(NODE, &["pods", "other/cart"])?;
    assert!(code == 0 && out.contains("no (outside)") && out.contains("(hostNetwork)"), "{out}");
    Ok(())
}

fn what_was_damaged(ground: &mut Ground) -> Outcome {
    let cart = ground.cluster.pod("demo", "cart")?.namespace().ok_or("no namespace")?;
    cart.run(|| {
        let mut batch = Batch::default();
        batch.flush_table(Family::Inet, "ambient-nat");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })?;
    let told = until(PATIENCE, || {
        let told = ground.told(NODE, "demo/cart")?;
        Ok(if told["repairs"] == 1 { Ok(told) } else { Err(told.to_string()) })
    })?;
    let what = told["lastRepair"]["what"].as_str().unwrap_or_default();
    assert!(
        what.contains("table ambient-nat is missing or changed; put back: table ambient-nat"),
        "{told}"
    );
    let (_, out, _) = ground.ambient(NODE, &["pods", "demo/cart"])?;
    assert!(
        out.contains("its capture was found broken once") && out.contains("nft monitor"),
        "{out}"
    );
    Ok(())
}
