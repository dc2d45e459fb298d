use std::{sync::LazyLock, task::Wake};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// An application and the socket that hears it, which has answered already: the kernel delays its acknowledgements.
async fn pair(acks: &Acks) -> (TcpStream, Prompt) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (mut application, mut prompt) = (near.unwrap(), acks.prompt(far.unwrap().0));
    for _ in 0..32 {
        exchange(&mut application, &mut prompt, &[1]).await;
    }
    (application, prompt)
}

/// Writes one after the other, and is answered when all has been heard.
async fn exchange(application: &mut TcpStream, prompt: &mut Prompt, writes: &[usize]) -> Duration {
    let begun = clock::steady();
    let asks = async {
        for n in writes {
            application.write_all(&vec![7; *n]).await.unwrap();
        }
        application.read_exact(&mut [0; 1]).await.unwrap();
    };
    let answers = async {
        let mut heard = vec![0; writes.iter().sum()];
        prompt.read_exact(&mut heard).await.unwrap();
        prompt.write_all(&[7]).await.unwrap();
    };
    tokio::join!(asks, answers);
    begun.elapsed()
}

/// How many of those that have exchanges of two writes wait for the kernel's delay.
async fn held_up(acks: &Acks, rounds: usize) -> usize {
    let (mut application, mut prompt) = pair(acks).await;
    let mut held_up = 0;
    for _ in 0..rounds {
        held_up += usize::from(exchange(&mut application, &mut prompt, &[300, 20_000]).await >= DELAY);
    }
    held_up
}

/// Nearly what the kernel delays an acknowledgement by.
const DELAY: Duration = Duration::from_millis(35);

#[tokio::test]
async fn who_writes_twice_before_reading_does_not_wait_for_the_kernels_delay() {
    let acks = Acks::default();
    // What it is for: without anybody who looks after those who wait, they do.
    assert!(held_up(&acks, 6).await >= 1);
    tokio::spawn(rounds(vec![acks.beside(), acks.clone()]));
    // A machine that is busy may be late now and then.
    assert!(held_up(&acks, 30).await <= 10);
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}

/// Reads what there is, until there is nothing more for now.
fn drain(prompt: &mut Prompt, woken: &Arc<Woken>) -> usize {
    let waker = Waker::from(woken.clone());
    let (mut cx, mut place) = (Context::from_waker(&waker), [0; 1024]);
    let mut place = ReadBuf::new(&mut place);
    while Pin::new(&mut *prompt).poll_read(&mut cx, &mut place).is_ready() {}
    place.filled().len()
}

/// Has the application say something that is heard.
async fn hear(application: &mut TcpStream, prompt: &mut Prompt, woken: &Arc<Woken>) {
    application.write_all(&[7; 300]).await.unwrap();
    while drain(prompt, woken) == 0 {
        prompt.stream.readable().await.unwrap();
    }
    woken.take();
}

#[tokio::test]
async fn who_hears_nothing_new_between_two_looks_is_woken_to_acknowledge() {
    let (acks, woken) = (Acks::default(), Arc::default());
    let (mut application, mut prompt) = pair(&acks).await;
    acks.look();
    acks.look();
    drain(&mut prompt, &woken);
    assert!(acks.is_empty(), "nothing was heard that is not answered");
    hear(&mut application, &mut prompt, &woken).await;
    acks.look();
    hear(&mut application, &mut prompt, &woken).await;
    acks.look();
    assert!(!woken.take(), "something new was heard between the two");
    acks.look();
    assert!(woken.take() && acks.is_empty() && prompt.habit.when.is_none());
    drain(&mut prompt, &woken);
    assert!(prompt.habit.when.is_some() && acks.is_empty());
    // It is acknowledged by now, so nobody is to be woken for it.
    drain(&mut prompt, &woken);
    assert!(acks.is_empty());
}

#[tokio::test]
async fn who_answers_is_not_woken() {
    let (acks, woken) = (Acks::default(), Arc::default());
    let (mut application, mut prompt) = pair(&acks).await;
    hear(&mut application, &mut prompt, &woken).await;
    acks.look();
    prompt.write_all(&[7]).await.unwrap();
    hear(&mut application, &mut prompt, &woken).await;
    prompt.write_all(&[7]).await.unwrap();
    acks.look();
    assert!(!acks.is_empty(), "who hears and answers stays");
    acks.look();
    assert!(!woken.take() && acks.is_empty());
    // And again, as it no longer stands there.
    hear(&mut application, &mut prompt, &woken).await;
    assert!(!acks.is_empty());
    drop(prompt);
    acks.look();
    acks.look();
    assert!(acks.is_empty());
}

static START: LazyLock<Instant> = LazyLock::new(clock::steady);

/// When something is heard so long after what was done.
fn after(pause: Duration) -> impl FnOnce() -> Instant {
    move || *START + pause
}

#[test]
fn who_has_waited_is_acknowledged_at_once_until_it_has_not() {
    let mut habit = Habit::default();
    habit.heard(|| unreachable!("nothing was asked for"));
    habit.answered();
    assert_eq!((habit.eager, habit.in_vain), (0, 0));
    // What comes later would have come all the same.
    habit.does(Done::Asked, *START);
    habit.heard(after(SOON));
    assert_eq!((habit.eager, habit.in_vain, habit.when), (0, 1, None));
    habit.does(Done::Asked, *START);
    habit.heard(after(SOON / 2));
    assert_eq!((habit.eager, habit.in_vain, habit.when), (EAGER, 0, None));
    for left in (0..EAGER).rev() {
        habit.does(Done::Asked, *START);
        habit.answered();
        assert_eq!((habit.eager, habit.in_vain, habit.when), (left, 0, None));
    }
}

#[test]
fn who_goes_on_and_is_never_answered_is_acknowledged_at_once_for_a_while_alone() {
    let mut habit = Habit::default();
    for left in (0..=EAGER).rev() {
        habit.does(Done::Asked, *START);
        habit.heard(after(SOON / 2));
        assert_eq!(habit.eager, left);
    }
    habit.answered();
    habit.eager = 1;
    habit.does(Done::Asked, *START);
    habit.heard(after(SOON / 2));
    assert_eq!(habit.eager, EAGER, "it was answered in between");
}

#[test]
fn who_never_waits_is_asked_ever_more_seldom_and_until_it_waits() {
    let mut habit = Habit::default();
    // How many exchanges are passed over before each that is asked for.
    let mut passed = Vec::new();
    for _ in 0..12 {
        let mut before = 0;
        while habit.passes > 0 {
            habit.does(Done::Passed, *START);
            habit.answered();
            before += 1;
        }
        passed.push(before);
        habit.does(Done::Asked, *START);
        habit.answered();
    }
    assert_eq!(passed, [0, 0, 0, 0, 0, 1, 3, 7, 15, 31, 31, 31]);
    for other in [Duration::ZERO, Duration::from_millis(34), Duration::from_millis(71)] {
        habit.does(Done::Passed, *START);
        habit.heard(after(other));
        assert_eq!((habit.eager, habit.passes), (0, 31), "{other:?}");
    }
    habit.does(Done::Passed, *START);
    habit.heard(after(Duration::from_millis(42)));
    assert_eq!((habit.eager, habit.in_vain, habit.passes), (EAGER, 0, 0));
}

#[tokio::test]
async fn who_is_passed_over_is_not_woken() {
    let (acks, woken) = (Acks::default(), Arc::default());
    let (mut application, mut prompt) = pair(&acks).await;
    prompt.habit.passes = 2;
    hear(&mut application, &mut prompt, &woken).await;
    acks.look();
    acks.look();
    acks.look();
    assert!(!woken.take() && acks.is_empty());
    prompt.write_all(&[7]).await.unwrap();
    assert_eq!(prompt.habit.passes, 1);
}

/// One that has heard something and owes an answer.
fn owes(woken: &Arc<Woken>) -> Waiting {
    let heard = Heard {
        times: AtomicU32::new(1),
        owes: AtomicBool::new(true),
        listed: AtomicBool::new(true),
        due: AtomicBool::new(false),
    };
    Waiting {
        heard: Arc::new(heard),
        seen: 0,
        socket: Waker::from(woken.clone()),
    }
}

#[tokio::test(start_paused = true)]
async fn whenever_somebody_comes_he_is_looked_after_in_time() {
    let acks = Acks::default();
    tokio::spawn(rounds(vec![acks.clone(), acks.beside()]));
    // While nobody is looked after, while somebody is, as that ends, and after it.
    for millis in 0..40 {
        time::sleep(Duration::from_millis(millis)).await;
        let (woken, came) = (Arc::default(), time::Instant::now());
        acks.add(owes(&woken));
        let looked_after = async {
            while !woken.take() {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        time::timeout(Duration::from_secs(60), looked_after)
            .await
            .expect("somebody comes by");
        let took = came.elapsed();
        assert!(took > TICK / 2 && took <= TICK * 3, "{millis}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_the_rounds_is_not_told_of_others() {
    let acks = Acks::default();
    let (all, other) = (vec![acks.clone(), acks.beside()], acks.beside());
    tokio::spawn(rounds(all));
    // It has nothing to do as it begins.
    time::sleep(TICK).await;
    let told = || async { time::timeout(Duration::ZERO, acks.0.rounds.begin.notified()).await.is_ok() };
    acks.add(owes(&Arc::default()));
    time::sleep(TICK).await;
    // The first on its thread.
    other.add(owes(&Arc::default()));
    assert!(!told().await);
    let going = || acks.0.rounds.going.load(SeqCst);
    // Whom it has woken and one look more.
    time::sleep(TICK + TICK / 2).await;
    assert!(acks.is_empty() && going());
    acks.add(owes(&Arc::default()));
    time::sleep(TICK * 2).await;
    assert!(acks.is_empty() && going(), "again from the last that it has found");
    time::sleep(TICK * 3).await;
    assert!(!going());
}

/// They come from threads of their own at all times, also as the rounds end.
#[test]
fn nobody_who_comes_as_the_rounds_end_is_forgotten() {
    let first = Acks::default();
    let all = [first.clone(), first.beside(), first.beside()];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.spawn(rounds(all.to_vec()));
    let threads = all.map(|acks| {
        std::thread::spawn(move || {
            for n in 0..100 {
                let woken = Arc::default();
                acks.add(owes(&woken));
                let came = clock::steady();
                while !woken.take() {
                    assert!(came.elapsed() < Duration::from_secs(60), "forgotten");
                    std::thread::sleep(Duration::from_micros(100));
                }
                std::thread::sleep(Duration::from_micros(100 * n));
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}
