//! Which drivers have native XDP, as far as their names tell.

/// Drivers of the kernel with native XDP, as `ethtool -i` spells them (Linux 6.12).
const WITH_XDP: [&str; 40] = [
    "am65-cpsw-nuss",
    "atlantic",
    "bnxt_en",
    "cpsw",
    "cpsw-switch",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_enetc",
    "fsl_enetc_vf",
    "fun",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "octeontx2-nicpf",
    "qede",
    "rvu_nicpf",
    "sfc",
    "st_gmac",
    "stmmac",
    "tsnep",
    "veth",
    "virtio_net",
    "vmxnet3",
];

/// Whether a driver of this name is known to have native XDP.
pub(super) fn has_native_xdp(driver: &str) -> bool {
    WITH_XDP.binary_search(&driver).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_for_the_search() {
        assert!(WITH_XDP.is_sorted());
        assert!(has_native_xdp("virtio_net") && has_native_xdp("ixgbe"));
        assert!(!has_native_xdp("e1000e") && !has_native_xdp(""));
    }
}
