//! The QMP server: sessions, framing, dispatch, events
