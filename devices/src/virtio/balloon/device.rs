//! The device: four queues, a target, and the last that the guest told.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::pages;
use super::stats::{ANSWER, GuestStats};
use crate::memory::{GuestMemView, Reclaim};
use crate::notice::{Notice, NoticeSink};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::state::{SavedState, StateError, Stateful};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};
use crate::virtio::ring::{Broken, Chain, Ring, Slot};
use crate::vm_clock::{VmClock, VmTimer};

/// Feature bits (virtio 1.2, 5.5.3).
const VIRTIO_BALLOON_F_STATS_VQ: u32 = 1;
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// The unit of the balloon, in bytes, whatever the guest's pages are (virtio 1.2, 5.5.6).
pub const PAGE: u64 = 4096;

/// The queues, by their index; 1 is for deflating. The last is there only where ranges are reported; Linux numbers
/// queues without gaps, so it follows the others although the specification calls it queue 4.
const INFLATE: usize = 0;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
/// Their sizes. A report of Linux takes 32 descriptors.
const QUEUE_SIZES: [u16; 4] = [128, 128, 128, 32];

/// How many chains are served before other devices get their turn.
const BATCH: usize = 16;
/// The most pages that one chain takes out of the guest; those named beyond stay where they are.
const PAGES: usize = 1 << 16;
/// How many page numbers are read at a time.
const CHUNK: usize = 256;

/// Where the guest's half of the configuration is (virtio 1.2, 5.5.4).
const ACTUAL: u64 = 4;

/// What a balloon can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonSpec {
    /// Whether the guest may take memory back before it runs out of it.
    pub deflate_on_oom: bool,
    /// Whether the guest may report ranges that it does not use.
    pub free_page_reporting: bool,
}

/// What a balloon needs of its host.
pub struct BalloonHost {
    /// Who takes pages back.
    pub reclaim: Arc<dyn Reclaim>,
    /// The thread it runs on.
    pub reactor: Reactor,
    /// The time in which statistics are asked for.
    pub clock: VmClock,
    /// Where changes of its size are told.
    pub notices: NoticeSink,
}

/// What a snapshot keeps of it beside the negotiation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// How many pages it should hold.
    pub target: u32,
    /// How many it holds, as the driver says.
    pub actual: u32,
}

impl SavedState for BalloonState {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u32 = 1;
}

/// A memory balloon.
pub struct VirtioBalloon {
    me: Weak<Self>,
    spec: BalloonSpec,
    host: BalloonHost,
    slots: [Slot; QUEUE_SIZES.len()],
    features: AtomicU64,
    target: AtomicU32,
    actual: AtomicU32,
    /// The buffer of statistics that the driver gave; giving it back asks for new ones.
    held: Mutex<Option<u16>>,
    stats: Mutex<GuestStats>,
    /// Seconds between questions; 0: none is asked.
    interval: AtomicU32,
    timer: Mutex<Option<VmTimer>>,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    /// Ranges that could not be taken back: a guest may name what it likes.
    refused: Repeats,
    stopped: Repeats,
}

impl VirtioBalloon {
    /// An empty balloon.
    #[must_use]
    pub fn new(spec: BalloonSpec, host: BalloonHost) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            spec,
            host,
            slots: Default::default(),
            features: AtomicU64::new(0),
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            held: Mutex::new(None),
            stats: Mutex::default(),
            interval: AtomicU32::new(0),
            timer: Mutex::new(None),
            driver: OnceLock::new(),
            refused: Repeats::default(),
            stopped: Repeats::default(),
        })
    }

    /// Asks the guest to bring the balloon to this many pages.
    pub fn set_target(&self, pages: u32) {
        self.target.store(pages, Ordering::Release);
        if let Some(driver) = self.driver.get() {
            driver.config_changed();
        }
    }

    /// How many pages it holds.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.actual.load(Ordering::Acquire)
    }

    /// What the guest told last.
    #[must_use]
    pub fn guest_stats(&self) -> GuestStats {
        *lock(&self.stats)
    }

    /// The seconds from one question for statistics to the next; 0: none is asked.
    #[must_use]
    pub fn polling_interval(&self) -> u32 {
        self.interval.load(Ordering::Acquire)
    }

    /// Asks for statistics every so many seconds, or never again with 0.
    ///
    /// # Errors
    /// The reactor's thread cannot start.
    pub fn set_polling_interval(&self, seconds: u32) -> std::io::Result<()> {
        self.interval.store(seconds, Ordering::Release);
        self.await_next()
    }

    fn queues(&self) -> usize {
        if self.spec.free_page_reporting {
            QUEUE_SIZES.len()
        } else {
            REPORTING
        }
    }

    fn serve(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let outcome = slot.with(|ring, memory| self.work(index, ring, memory));
        let done = match outcome {
            None | Some(Ok(false)) => Ok(()),
            Some(Ok(true)) => slot.rearm(),
            Some(Err(Broken)) => {
                self.needs_reset();
                Ok(())
            }
        };
        if let Err(error) = done
            && let Some(times) = self.stopped.note()
        {
            tracing::error!(times, %error, "virtio-balloon cannot go on");
        }
    }

    /// Serves a batch of chains; whether there may be more.
    fn work(&self, index: usize, ring: &mut Ring, memory: &GuestMemView) -> Result<bool, Broken> {
        for _ in 0..BATCH {
            let Some(chain) = ring.next(memory)? else {
                return Ok(false);
            };
            match index {
                INFLATE => self.inflate(&chain)?,
                REPORTING => self.take_report(&chain)?,
                STATISTICS => {
                    self.take_stats(&chain)?;
                    let before = lock(&self.held).replace(chain.head());
                    // A driver has one such buffer; of two the older one is of no use.
                    if let Some(older) = before {
                        ring.add_used_head(memory, older, 0)?;
                    }
                    continue;
                }
                // A page comes back when it is touched.
                _ => chain.check()?,
            }
            ring.add_used(memory, &chain, 0)?;
        }
        Ok(true)
    }

    fn inflate(&self, chain: &Chain<'_>) -> Result<(), Broken> {
        let mut bytes = [0; CHUNK * size_of::<u32>()];
        let mut offset = 0;
        while offset < PAGES * size_of::<u32>() {
            let read = chain.gather(offset, &mut bytes)?;
            let numbers = bytes.get(..read).unwrap_or_default();
            let numbers = numbers.as_chunks().0.iter().copied();
            pages::runs(numbers.map(u32::from_le_bytes), |run| {
                self.reclaim(run.start * PAGE, (run.end - run.start) * PAGE);
            });
            if read < bytes.len() {
                break;
            }
            offset += read;
        }
        Ok(())
    }

    fn take_report(&self, chain: &Chain<'_>) -> Result<(), Broken> {
        for range in chain.rooms() {
            let (start, len) = range?;
            self.reclaim(start, len.into());
        }
        Ok(())
    }

    fn take_stats(&self, chain: &Chain<'_>) -> Result<(), Broken> {
        let mut answer = [0; ANSWER];
        let read = chain.gather(0, &mut answer)?;
        if read > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |since| since.as_secs());
            let stats = GuestStats::parse(answer.get(..read).unwrap_or_default(), now);
            *lock(&self.stats) = stats;
        }
        if let Err(error) = self.await_next()
            && let Some(times) = self.stopped.note()
        {
            tracing::error!(times, %error, "virtio-balloon asks for no more statistics");
        }
        Ok(())
    }

    /// Gives the host the pages of a range. What a guest names wrongly it keeps.
    fn reclaim(&self, start: u64, len: u64) {
        if let Err(error) = self.host.reclaim.reclaim(start, len)
            && let Some(times) = self.refused.note()
        {
            tracing::warn!(times, start, len, %error, "pages of the balloon stay with the guest");
        }
    }

    /// Has the timer run out when the next question is due.
    fn await_next(&self) -> std::io::Result<()> {
        let seconds = self.polling_interval();
        if seconds == 0 {
            return Ok(());
        }
        let mut timer = lock(&self.timer);
        if timer.is_none() {
            let handler = Arc::new(Poll(Weak::clone(&self.me)));
            *timer = Some(self.host.clock.timer(&self.host.reactor, handler)?);
        }
        if let Some(timer) = &*timer {
            timer.arm(Duration::from_secs(seconds.into()));
        }
        Ok(())
    }

    /// Asks for statistics: the driver gets its buffer back, and returns it with new ones.
    fn poll(&self) {
        if self.polling_interval() == 0 {
            return;
        }
        let asked = self.slots[STATISTICS].with(|ring, memory| {
            let held = lock(&self.held).take();
            let asked = held.is_some();
            if let Some(head) = held {
                ring.add_used_head(memory, head, 0)?;
            }
            Ok(asked)
        });
        match asked {
            Some(Err(Broken)) => self.needs_reset(),
            // The answer begins the next period.
            Some(Ok(true)) => {}
            // Nobody is there to be asked yet.
            Some(Ok(false)) | None => {
                if let Err(error) = self.await_next()
                    && let Some(times) = self.stopped.note()
                {
                    tracing::error!(times, %error, "virtio-balloon asks for no more statistics");
                }
            }
        }
    }

    fn needs_reset(&self) {
        if let Some(driver) = self.driver.get() {
            driver.needs_reset();
        }
    }

    fn config(&self) -> [u8; 8] {
        let [a, b, c, d] = self.target.load(Ordering::Acquire).to_le_bytes();
        let [e, f, g, h] = self.actual().to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A kick of one queue.
struct Kick(Weak<VirtioBalloon>, usize);

impl Ready for Kick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(balloon) = self.0.upgrade() {
            balloon.serve(self.1);
        }
    }
}

/// The end of a polling period.
struct Poll(Weak<VirtioBalloon>);

impl Ready for Poll {
    fn ready(&self, _readiness: Readiness) {
        if let Some(balloon) = self.0.upgrade() {
            balloon.poll();
        }
    }
}

impl Stateful for VirtioBalloon {
    type State = BalloonState;

    fn save(&self) -> BalloonState {
        BalloonState {
            target: self.target.load(Ordering::Acquire),
            actual: self.actual(),
        }
    }

    fn load(&self, state: BalloonState) -> Result<(), StateError> {
        self.target.store(state.target, Ordering::Release);
        self.actual.store(state.actual, Ordering::Release);
        Ok(())
    }
}

impl VirtioDevice for VirtioBalloon {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_BALLOON).unwrap_or_default()
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES.get(..self.queues()).unwrap_or_default()
    }

    fn features(&self) -> u64 {
        [
            (VIRTIO_RING_F_INDIRECT_DESC, true),
            (VIRTIO_RING_F_EVENT_IDX, true),
            (VIRTIO_BALLOON_F_STATS_VQ, true),
            (VIRTIO_BALLOON_F_DEFLATE_ON_OOM, self.spec.deflate_on_oom),
            (VIRTIO_BALLOON_F_REPORTING, self.spec.free_page_reporting),
        ]
        .into_iter()
        .filter(|(_, offered)| *offered)
        .fold(0, |features, (bit, _)| features | 1 << bit)
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let mut actual = self.actual().to_le_bytes();
        for (at, &byte) in (offset..=u64::MAX).zip(data) {
            let place = at.checked_sub(ACTUAL).map(usize::try_from);
            if let Some(Ok(place)) = place
                && let Some(to) = actual.get_mut(place)
            {
                *to = byte;
            }
        }
        let pages = u32::from_le_bytes(actual);
        if self.actual.swap(pages, Ordering::AcqRel) != pages {
            self.host.notices.send(Notice::BalloonChange { pages });
        }
    }

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let count = self.queues();
        let slot = self.slots.get(index).filter(|_| index < count);
        let slot = slot.ok_or(VirtioError::NoSuchQueue { index, count })?;
        let features = self.features.load(Ordering::SeqCst);
        let handler = Arc::new(Kick(Weak::clone(&self.me), index));
        slot.start(index, queue, features, &self.host.reactor, handler)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let slot = self.slots.get(index)?;
        slot.stop_after(|ring| {
            // Who starts the queue again gets the buffer again.
            if index == STATISTICS && lock(&self.held).take().is_some() {
                ring.put_back();
            }
        })
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
        self.actual.store(0, Ordering::Release);
        *lock(&self.stats) = GuestStats::default();
    }
}

impl fmt::Debug for VirtioBalloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBalloon")
            .field("spec", &self.spec)
            .field("state", &self.save())
            .finish_non_exhaustive()
    }
}
