//! What the driver of a virtio device has written so far: features, and where its queues are
//! (virtio 1.2, 4.1.4.3). Nothing is started here; [`super::registers`] sees to that.

use virtio_queue::QueueState;

use super::layout::MAX_QUEUES;
use super::state::QueueRegistersState;
use super::status::Phase;

/// What the driver has written so far.
pub(super) struct Negotiation {
    pub(super) phase: Phase,
    pub(super) offered_select: u32,
    pub(super) accepted_select: u32,
    pub(super) accepted: u64,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
    pub(super) paused: bool,
    /// The function has lost its place: no queue starts any more, whatever a vCPU still writes.
    pub(super) retired: bool,
}

/// One queue's registers, and where the queue is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    pub(super) place: Place,
}

/// Where a queue is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Place {
    /// Not started.
    #[default]
    Idle,
    /// With the device.
    Running,
    /// Taken back by a pause.
    Paused(QueueState),
}

impl Negotiation {
    pub(super) fn new(sizes: &[u16]) -> Self {
        let queues = sizes
            .iter()
            .take(MAX_QUEUES)
            .map(|&max_size| QueueRegisters {
                max_size,
                size: max_size,
                ..QueueRegisters::default()
            })
            .collect();
        Self {
            phase: Phase::Reset,
            offered_select: 0,
            accepted_select: 0,
            accepted: 0,
            queue_select: 0,
            queues,
            paused: false,
            retired: false,
        }
    }

    pub(super) fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, while its registers may still be written.
    pub(super) fn configurable(&mut self) -> Option<&mut QueueRegisters> {
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| !queue.enabled)
    }

    /// Features are the driver's to choose until it has set FEATURES_OK.
    pub(super) fn accept(&mut self, value: u32) {
        let shift = match self.accepted_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if matches!(self.phase, Phase::Reset | Phase::Noticed | Phase::Driving) {
            let kept = self.accepted & !(u64::from(u32::MAX) << shift);
            self.accepted = kept | u64::from(value) << shift;
        }
    }

    /// One of the three ring addresses, whole or by halves.
    pub(super) fn write_ring(&mut self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4)
            || !(data.len() == 4 || data.len() == 8 && offset.is_multiple_of(8))
        {
            return;
        }
        let Some(queue) = self.configurable() else {
            return;
        };
        let register = match offset / 8 {
            0 => &mut queue.descriptors,
            1 => &mut queue.driver,
            _ => &mut queue.device,
        };
        let mut bytes = register.to_le_bytes();
        let at = usize::from(!offset.is_multiple_of(8)) * 4;
        for (to, &from) in bytes.iter_mut().skip(at).zip(data) {
            *to = from;
        }
        *register = u64::from_le_bytes(bytes);
    }
}

impl QueueRegisters {
    /// The queue as the driver described it.
    pub(super) fn describe(&self, event_idx: bool) -> QueueState {
        QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.driver,
            used_ring: self.device,
        }
    }

    pub(super) fn save(&self) -> QueueRegistersState {
        QueueRegistersState {
            size: self.size,
            enabled: self.enabled,
            descriptors: self.descriptors,
            driver: self.driver,
            device: self.device,
            place: match self.place {
                Place::Paused(state) => Some(state.into()),
                Place::Idle | Place::Running => None,
            },
            running: matches!(self.place, Place::Running),
        }
    }

    pub(super) fn load(&mut self, saved: &QueueRegistersState, event_idx: bool) {
        *self = Self {
            max_size: self.max_size,
            size: saved.size,
            enabled: saved.enabled,
            descriptors: saved.descriptors,
            driver: saved.driver,
            device: saved.device,
            place: Place::Idle,
        };
        if let Some(place) = saved.place {
            self.place = Place::Paused(QueueState {
                next_avail: place.next_avail,
                next_used: place.next_used,
                ..self.describe(event_idx)
            });
        }
    }
}
