//! The device status field and the order in which a driver may set its bits (2.1, 3.1.1).

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// The guest has a driver for it.
pub const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
/// Features have been negotiated.
pub const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
/// The driver is ready: the device works.
pub const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
/// The driver has given up.
pub const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
/// The device asks for a reset; never set by the driver.
pub const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// The steps of initialisation, in their order.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// The status after the driver has written `written`, which is not 0, to a status of `status`. Bits are only ever added:
/// a step where all before it have been taken, and that of features only if the device takes them as well.
pub fn after_write(status: u32, written: u32, features_acceptable: bool) -> u32 {
    let mut status = status;
    if status & FAILED != 0 {
        return status;
    }
    for (index, step) in STEPS.into_iter().enumerate() {
        let before = STEPS.iter().take(index).fold(0, |bits, step| bits | step);
        let refused = step == FEATURES_OK && !features_acceptable;
        if written & step != 0 && status & before == before && !refused {
            status |= step;
        }
    }
    status | written & FAILED
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_way() {
        let mut status = 0;
        for step in STEPS {
            status = after_write(status, status | step, true);
            assert_eq!(status & step, step);
        }
        assert_eq!(status, 0xf);
    }

    #[test]
    fn features_that_are_refused_hold_up_the_rest() {
        assert_eq!(after_write(3, 0xb, false), 3);
        assert_eq!(after_write(3, 0xf, false), 3);
        assert_eq!(after_write(11, 0xf, true), 0xf);
    }

    proptest! {
        #[test]
        fn bits_come_in_order_and_stay(writes in prop::collection::vec((1u32.., any::<bool>()), 0..20)) {
            let mut status = 0;
            for (written, acceptable) in writes {
                let next = after_write(status, written, acceptable);
                prop_assert_eq!(next & status, status);
                prop_assert_eq!(next & !(0xf | FAILED), 0);
                let steps: Vec<_> = STEPS.iter().map(|step| next & step != 0).collect();
                prop_assert!(steps.windows(2).all(|pair| pair[0] || !pair[1]), "{:?}", steps);
                status = next;
            }
        }
    }
}
