"""Which files of trajectories PDEBench and The Well published, so that no other passes for them.

Sources: PDEBench's table of downloads, pdebench/data_download/pdebench_data_urls.csv of
github.com/pdebench/PDEBench (without ns_incom, whose layout is not read here, and the test files of
single flows); The Well's list of data sets, the_well/data of github.com/PolymathicAI/the_well.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import DataError
from datamodules.pde.layouts import TheWell, open_layout

PDEBENCH = {
    "1D_Advection_Sols_beta0.1.hdf5": "b4be2fc3383f737c76033073e6d2ccfb",
    "1D_Advection_Sols_beta0.2.hdf5": "d47b52c1be4b6bcaa8748a8df2f5fbb8",
    "1D_Advection_Sols_beta0.4.hdf5": "d595bbfd2c659df995a93cd40d6ea568",
    "1D_Advection_Sols_beta0.7.hdf5": "f89030c240a1e90b55649776854a84c2",
    "1D_Advection_Sols_beta1.0.hdf5": "1fe41923a4123db55bf4e89bea32e142",
    "1D_Advection_Sols_beta2.0.hdf5": "0e9beff98693089c38e213a1f2b9ac43",
    "1D_Advection_Sols_beta4.0.hdf5": "a87b03ff425496360e2732921805f47d",
    "1D_Advection_Sols_beta7.0.hdf5": "72a286ad2fcba574bd20bc045ba82d58",
    "1D_Burgers_Sols_Nu0.001.hdf5": "44cb784d5a07aa2b1c864cabdcf625f9",
    "1D_Burgers_Sols_Nu0.002.hdf5": "edf1cd13622d151dfde3e4e5af7a95b4",
    "1D_Burgers_Sols_Nu0.004.hdf5": "435e1fecb8a64a0b4563bb8d09f81c33",
    "1D_Burgers_Sols_Nu0.01.hdf5": "e6d9a4f62baf9a29121a816b919e2770",
    "1D_Burgers_Sols_Nu0.02.hdf5": "7c8c717a3a7818145877baa57106b090",
    "1D_Burgers_Sols_Nu0.04.hdf5": "16f4c7afaf8c16238be157e54c9297c7",
    "1D_Burgers_Sols_Nu0.1.hdf5": "660ba1008d3843bf4e28d2895eb607ce",
    "1D_Burgers_Sols_Nu0.2.hdf5": "01d9333254dff2f3cad090b61f5cf695",
    "1D_Burgers_Sols_Nu0.4.hdf5": "58327a6107e8f9defb5075677cc42533",
    "1D_Burgers_Sols_Nu1.0.hdf5": "9021eba35332d127306f11ef84c1a60f",
    "1D_Burgers_Sols_Nu2.0.hdf5": "70fe0c24d9313e70f6059e5212bdb3d7",
    "1D_Burgers_Sols_Nu4.0.hdf5": "8af7f70166c00ffad377c80fa477d81f",
    "1D_CFD_Rand_Eta0.01_Zeta0.01_periodic_Train.hdf5": "2fdd00138f1d7abc794fb953021a9f43",
    "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5": "45655bd77d006ab539c52b7fbcf099b9",
    "1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_periodic_Train.hdf5": "ad22fe08b8abc721179dbb34f2cc8b2a",
    "1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5": "79857a11ad9a69d77b8cf249a1c72d06",
    "1D_CFD_Shock_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5": "08dffc3d84033c7574a70614703dd753",
    "1D_diff-sorp_NA_NA.h5": "9d466d1213065619d087319e16d9a938",
    "ReacDiff_Nu0.5_Rho1.0.hdf5": "69a429239778d529cd419ed5888ea835",
    "ReacDiff_Nu0.5_Rho10.0.hdf5": "ff7c724b18e7ebe02e19c179852f48ee",
    "ReacDiff_Nu0.5_Rho2.0.hdf5": "ac907daa7e483d203a5c77567cdea561",
    "ReacDiff_Nu0.5_Rho5.0.hdf5": "fb149e7540d8977af158bb8fec1048a3",
    "ReacDiff_Nu1.0_Rho1.0.hdf5": "bd73c2f3448d03e95e98c3831fc8fa70",
    "ReacDiff_Nu1.0_Rho10.0.hdf5": "a94e65631881a27ddae3ef74caf53093",
    "ReacDiff_Nu1.0_Rho2.0.hdf5": "112c01a76447162bd67c8c1073f58ca2",
    "ReacDiff_Nu1.0_Rho5.0.hdf5": "fa224c9d143de37ac6914d391e70f425",
    "ReacDiff_Nu2.0_Rho1.0.hdf5": "925a7e2c9b9e40ad2dd44b7002ec882b",
    "ReacDiff_Nu2.0_Rho10.0.hdf5": "a3e25a9fb8a99f010352ad3dd1afd596",
    "ReacDiff_Nu2.0_Rho2.0.hdf5": "426353b241acfbc64067acb1bdc80ade",
    "ReacDiff_Nu2.0_Rho5.0.hdf5": "f2890bdac5103a3b78fac5f80e57b760",
    "ReacDiff_Nu5.0_Rho1.0.hdf5": "0ed75b55f61bec11c47d379e34959e54",
    "ReacDiff_Nu5.0_Rho10.0.hdf5": "264c80af0e2a6cc1f70e87275e0f6ac4",
    "ReacDiff_Nu5.0_Rho2.0.hdf5": "f927f5d85f2e9bd97dff31b4dab051ae",
    "ReacDiff_Nu5.0_Rho5.0.hdf5": "c9c26e2b5f2d4bf5bcbbd4ba34fefd5e",
    "2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_128_Train.hdf5": "5b21dcccaef4d2145ca579a71153c580",
    "2D_CFD_Rand_M0.1_Eta0.1_Zeta0.1_periodic_128_Train.hdf5": "b2733888745a1d64e36df813e979910b",
    "2D_CFD_Rand_M0.1_Eta1e-08_Zeta1e-08_periodic_512_Train.hdf5": (
        "ae2552864d0856f58dc74132a2f95d20"
    ),
    "2D_CFD_Rand_M1.0_Eta0.01_Zeta0.01_periodic_128_Train.hdf5": "21969082d0e9524bcc4708e216148e60",
    "2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_128_Train.hdf5": "75a34f34a3dcd9bc8ae4b7adf8bf372c",
    "2D_CFD_Rand_M1.0_Eta1e-08_Zeta1e-08_periodic_512_Train.hdf5": (
        "04fcc44c39acea69e2869b84cd653d4a"
    ),
    "2D_CFD_Turb_M0.1_Eta1e-08_Zeta1e-08_periodic_512_Train.hdf5": (
        "844555000d342d2947162c6cf46798e7"
    ),
    "2D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_periodic_512_Train.hdf5": (
        "3f2c7376cde5fb072db0f9814f1c6992"
    ),
    "2D_DarcyFlow_beta0.01_Train.hdf5": "d05c287d4c0b7d3178b0097084238251",
    "2D_DarcyFlow_beta0.1_Train.hdf5": "294f9a03a4aa16b0e386469ca8b471be",
    "2D_DarcyFlow_beta1.0_Train.hdf5": "81694ed31306ff2e5f6b76349b0b4389",
    "2D_DarcyFlow_beta10.0_Train.hdf5": "a7f23cf8011fc211b180828af39b7d1a",
    "2D_DarcyFlow_beta100.0_Train.hdf5": "7c09f3b1bb097737d3fd52ffb0c6f1c8",
    "2D_diff-react_NA_NA.h5": "b8d0b86064193195ddc30c33be5dc949",
    "2D_rdb_NA_NA.h5": "75d838c47aa410694bdc912ea7f22282",
    "3D_CFD_Rand_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5": "45892a12d1066d54af74badae55c438e",
    "3D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5": "4f0eacaec5ff000bbd9a31026ea207b8",
}
"""MD5 of PDEBench's files, by their names."""

THE_WELL = (
    *("acoustic_scattering_discontinuous", "acoustic_scattering_inclusions"),
    *("acoustic_scattering_maze", "active_matter", "convective_envelope_rsg"),
    *("euler_multi_quadrants_openBC", "euler_multi_quadrants_periodicBC"),
    *("gray_scott_reaction_diffusion", "helmholtz_staircase", "MHD_64", "MHD_256", "planetswe"),
    *("post_neutron_star_merger", "rayleigh_benard", "rayleigh_benard_uniform"),
    *("rayleigh_taylor_instability", "shear_flow", "supernova_explosion_64"),
    *("supernova_explosion_128", "turbulence_gravity_cooling", "turbulent_radiative_layer_2D"),
    *("turbulent_radiative_layer_3D", "viscoelastic_instability"),
)
"""The Well's data sets, each a folder; it publishes no checksums."""


def check_official(paths: Sequence[Path], checked: Path) -> None:
    """Refuse files that are not PDEBench's, by name and MD5, or The Well's, by layout and folder.

    Args:
        paths: the files.
        checked: folder that remembers which files had their MD5, as a large one takes minutes.

    Raises:
        DataError: one of them is another file.
    """
    for path in paths:
        expected = PDEBENCH.get(path.name)
        if expected is not None:
            _check_md5(path, expected, checked)
        elif not (
            set(THE_WELL) & set(path.absolute().parts) and isinstance(open_layout(path), TheWell)
        ):
            raise DataError(
                f"{path} is none of the files that PDEBench or The Well published, by its name or "
                "folder: set data.source=file."
            )


def _check_md5(path: Path, expected: str, checked: Path) -> None:
    facts = path.stat()
    seen = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {expected}"
    mark = checked / hashlib.sha256(seen.encode()).hexdigest()[:24]
    if mark.is_file():
        return
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if got != expected:
        raise DataError(
            f"Expected {path} with MD5 {expected}, got {got}: it is damaged or not PDEBench's, "
            "fetch it again or set data.source=file."
        )
    checked.mkdir(parents=True, exist_ok=True)
    mark.write_text(seen + "\n")
