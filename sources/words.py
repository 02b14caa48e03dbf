"""Words in the names of folders and files: what says a person, a visit, a class, a split or a contrast, and what is no scan.

contrast_of(("anna", "anat"), "anna_T2_FLAIR")     # "FLAIR"
no_scan(("anna",), "anna_T1_seg")                  # "labels or masks"

A name is taken apart at everything that is neither a letter nor a digit. The words of a file come before those of its folders,
the deeper folders before the others.
"""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --------------------------------------------------------------------------- contrasts

# name: words of it. Where a name holds words of several, the first of these counts: T2_FLAIR is a FLAIR
CONTRASTS = {
    "FLAIR": "flair t2f flairraw t2flair t2wflair flairw tirm fl",
    "T1CE": "t1ce t1gd t1gad t1c t1post t1contrast t1wce ce t1cw",
    "T1MAP": "t1map t1rho r1 r1map",
    "T2MAP": "t2map t2starmap r2 r2star r2map r2starmap mtsat mtr mtrmap b1map tb1map pdmap",
    "ADC": "adc",
    "DTI": "fa md dti",
    "T2STAR": "t2star t2starw t2s swi qsm gre",
    "BOLD": "bold fmri func rest epi sbref functional",
    "DWI": "dwi b0 b1000 diffusion hardi",
    "ASL": "asl cbf m0scan perf perfusion",
    "PET": "pet fdg av45 pib suvr amyloid flutemetamol florbetapir",
    "FIELDMAP": "fieldmap phasediff phase1 phase2 magnitude magnitude1 magnitude2 fmap",
    "LOCALIZER": "localizer localiser scout survey",
    "ANGIO": "angio tof mra",
    "T2": "t2 t2w t2wi t2raw t2tse tse t2weighted",
    "PD": "pd pdw pdwi pdt2",
    "T1": "t1 t1w t1wi mprage mprageised mpr mprg spgr fspgr bravo tfe 3dt1 t1weighted t1mprage unit1 mp2rage t1n anatomical",
    "CT": "ct cta ncct cect",
}
_CONTRAST_OF = {word: name for name, words in reversed(CONTRASTS.items()) for word in words.split()}
# short words that mean other things too: they count where they stand last, or are a whole folder's name
_LAST_ALONE = {
    "fl",
    "fa",
    "md",
    "ct",
    "pd",
    "gre",
    "ce",
    "r1",
    "r2",
    "rest",
    "func",
    "b0",
    "tse",
    "epi",
    "survey",
    "anatomical",
}
# what shows something else than anatomy: where one contrast beside these is left, it is taken
NO_ANATOMY = {"T1MAP", "T2MAP", "ADC", "DTI", "BOLD", "DWI", "ASL", "FIELDMAP", "LOCALIZER", "ANGIO"}
CHANNEL = re.compile(r"(.*\d)_(000\d)")  # of nnU-Net's imagesTr/BRATS_001_0000.nii.gz

# --------------------------------------------------------------------------- versions of one scan

# what was done to a scan, or the space that it was brought to; plainer scans come first
VERSIONS = _words(
    "mni mninonlinear mni152 mnispace icbm152 talairach tal t88 sbj brain bet betted skullstripped stripped ss nobet "
    "norm normalized normalised nu orig rawavg n4 biascorr biascorrected bfc corrected corr preproc preprocessed "
    "processed resampled resliced reg registered coreg coregistered warped aligned std acpc dc restore smooth "
    "smoothed denoised masked gfc defaced deface cropped unbiased pp histmatch zscore scaled downsampled res 1mm 2mm "
    "iso isotropic"
)
SPACES = re.compile(r"mni|icbm|tal|t88|space-")  # words of versions that say another space than the scan's own
# of FreeSurfer's mri/, in the order that they are made in: all of them are T1-weighted
FREESURFER = (
    "T1",
    "orig",
    "nu",
    "rawavg",
    "norm",
    "brain",
    "brainmask",
    "orig_nu",
    "antsdn.brain",
    "001",
    "002",
    "003",
)
# what SPM and CAT12 write before the name of the scan that a file was made from
SPM_VERSION = re.compile(r"s|sm|w|sw|m|wm|mw|r|rm|rw|u|a|ra|wa|wra|swra|swa")
SPM_NO_SCAN = re.compile(r"(?P<field>i?y|u_rc1|v|iv)_|(?P<tissue>m?w?r?c[1-6]|m?w?p[1-6]|r[cp][1-6])(?=[^_\-. ])")

# --------------------------------------------------------------------------- what is no scan

LABEL_WORDS = _words(
    "mask masks wmh seg segs segm segmentation segmentations label labels lesion lesions roi rois aseg aparc dseg "
    "fseg parc wmparc parcellation ribbon pveseg manual gt groundtruth annotation annotations brainmask lesionmask "
    "tumormask labelmap labelmaps labelstr labelsts labelsval deepseg synthseg"
)
PROBABILITY_WORDS = _words(
    "probseg prob probs probability probabilities pve pveseg mixeltype tpm gm wm csf gmprob wmprob csfprob"
)
DEFORMATION_WORDS = _words(
    "warp warpfield xfm deformation deformations displacement dispfield jacobian jac jacobians invwarp transform "
    "transforms xfms inversewarp warpcoef"
)
ATLAS_WORDS = _words("atlas atlases template templates harvardoxford aal schaefer juelich")
STATISTIC_WORDS = _words("stat stats statmap zstat tstat cope varcope spmt spmf resms rpv pmap zmap tmap fstat thresh")
_TEMPLATES = re.compile(r"fsaverage|cvs_avg")  # of FreeSurfer, beside people
MAP_FOLDERS = {"maps", "map", "probmaps", "probabilitymaps"}
LABELS, ATLASES = "labels or masks", "atlases or templates"
_REASONS = {
    LABELS: LABEL_WORDS,
    "tissue or probability maps": PROBABILITY_WORDS,
    "deformation fields": DEFORMATION_WORDS,
    ATLASES: ATLAS_WORDS,
    "statistical maps": STATISTIC_WORDS,
}
_LAST_WORD_ALONE = {
    "gm",
    "wm",
    "csf",
    "prob",
    "probs",
    "manual",
    "gt",
    "stat",
    "stats",
    "thresh",
    "jac",
    "transform",
    "warp",
    "label",
}
FREESURFER_NO_SCANS = {
    "wm",
    "ribbon",
    "filled",
    "ctrl_pts",
    "wm.seg",
    "wm.asegedit",
    "brain.finalsurfs.manedit",
    "lh",
    "rh",
}

# --------------------------------------------------------------------------- folders that name nobody

CLASSES = _words(
    "ad cn mci emci lmci smc nc hc td tdc asd adhd ms scz sz mdd bd bp sczd ftd dlb vad pdd psp als control controls "
    "ctrl ctl healthy healthycontrol healthycontrols patient patients disease diseased sick normal abnormal "
    "pathological pathology demented nondemented verymilddementia milddementia moderatedementia severedementia "
    "verymilddemented milddemented moderatedemented verymild mild moderate severe dementia nodementia nonimpairment "
    "noimpairment impaired mildimpairment moderateimpairment verymildimpairment alzheimer alzheimers parkinson "
    "parkinsons converted converter converters nonconverter stable progressive smci pmci glioma meningioma pituitary "
    "notumor tumor tumour tumors notumour nontumor braintumor lgg hgg gbm benign malignant yes no positive negative "
    "pos neg epilepsy stroke ischemic hemorrhagic haemorrhagic lesioned autism autistic typical schizophrenia bipolar "
    "depression depressed male female men women young old elderly adult adults child children cases responder "
    "responders nonresponder nonresponders"
)
_CLASS_FILLERS = r"(?:group|grp|class|cohort|subjects?|people|persons|participants|images|scans|mri|data|set)"
GROUP = re.compile(
    r"(?:.*[^a-z])?(?:site|disc|disk|part|batch|group|grp|set|fold|cent(?:er|re)|hospital|scanner|cohort|study|studies|block|chunk|"
    r"folder|dir|cd|dvd|institution|institute|vendor|release|phase|collection|dataset|project|db)s?[ _-]?(?:\d+|[a-z])?",
    re.IGNORECASE,
)
STRUCTURE = _words(
    "anat mri mris mr raw rawdata scan scans image images img imgs pic pics picture pictures photo photos frame "
    "frames nifti niftis nii dicom dicoms dcm data dataset datasets sourcedata source derivatives processed "
    "preprocessed unprocessed t88 111 sbj sbj111 subj111 fsl fslseg resources files file output out sessions orig "
    "brain slices slice png pngs jpg jpeg jpgs tif tiff tiffs bmp axial coronal sagittal ax cor sag transversal "
    "transverse structural volumes volume vol stack stacks series all native mni mni152 space original originals "
    "input inputs keras acquisition acq run echo isotropic 2d 3d mprage3d defaced deface anon anonymized anonymised "
    "nobet bet brains skullstripped stripped preproc br hdr analyze mgz derived subjects people participants persons "
    "individuals imagestr imagests imagesval repeat to from in of and mninonlinear"
)
_VISIT_WORD = r"ses(?:sion)?|visit|vis|week|wk|month|mo|year|yr|day|time ?point|tp|wave|follow[ _-]?up|fu|exam|mr|ses"
VISIT = re.compile(
    rf"(?:(?:{_VISIT_WORD})[ _-]?\d+|ses-[0-9a-z]+|(?:session|visit)[ _-]?[a-d]|baseline|bl|screening|initial|pre|post|before|"
    rf"after|pre[ _-]?op|post[ _-]?op|follow[ _-]?up|fu|retest|test[ _-]?retest|m\d\d|v\d\d|y\d\d|d\d{{4}}|"
    rf"\d+ ?(?:months?|mo|weeks?|years?|yrs?|days?|mths?))",
    re.IGNORECASE,
)
SHORT_VISIT = re.compile(r"[vmwyd][ _-]?\d", re.IGNORECASE)  # where other names are people's
_DATE = r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
DATE = re.compile(rf"({_DATE})(?:[-_ T.]?\d\d[-_.:h]?\d\d(?:[-_.:m]?\d\d(?:\.\d+)?)?)?")
# numbers that archives give to images and series, UIDs, field strengths
NUMBERED_BY_ARCHIVE = re.compile(r"[IS]\d{5,}|\d+(?:\.\d+){4,}|\d(?:\.\d)?T", re.IGNORECASE)

# --------------------------------------------------------------------------- splits

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trn", "imagestr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "valset", "imagesval"), "validate"),
    **dict.fromkeys(("test", "testing", "testset", "holdout", "heldout", "imagests"), "test"),
}
_SPLIT_FILLERS = STRUCTURE | {"set", "split", "folder", "subset", "h5", "nonaug", "aug", "only", "seg", "labels"}


@lru_cache(100_000)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case."""
    return tuple(word for word in re.split(r"[^0-9a-z]+", name.lower()) if word)


def plain(name: str) -> str:
    """A name's letters and digits alone, in lower case."""
    return "".join(words_of(name))


def stem_of(name: str) -> str:
    """A file's name without what says its kind."""
    return re.sub(
        r"(\.(nii|nifti|img))?\.(nii|gz|hdr|img|mgz|mgh|png|jpe?g|tiff?|bmp)$|\.nii\.gz$", "", name, flags=re.IGNORECASE
    )


def contrast_of(folders: Sequence[str], stem: str) -> str:
    """The contrast that a file's name or, where it says none, a folder's name says; a key of `CONTRASTS`, or "" for none."""
    for index, name in enumerate((stem, *reversed(folders))):
        words = words_of(re.sub(r"mp[-_]rage", "mprage", name, flags=re.IGNORECASE))
        telling = [word for word in words if word not in VERSIONS and not word.isdecimal()]
        last = telling[-1:] if not index or len(words) == 1 else []
        found = {_CONTRAST_OF[word] for word in words if word in _CONTRAST_OF and word not in _LAST_ALONE}
        found |= {_CONTRAST_OF[word] for word in last if word in _LAST_ALONE}
        if found and not (index and _is_class(name)):
            suffix = _CONTRAST_OF.get(words[-1])
            if suffix in found and name.startswith("sub-"):
                return suffix
            return next(name for name in CONTRASTS if name in found)
    return ""


def no_scan(folders: Sequence[str], stem: str) -> str:
    """Why a file is no scan, by the words of its name and folders: a reason, or "" for a scan."""
    if any(_TEMPLATES.match(name) for name in folders):
        return ATLASES
    if "mri" in folders[-2:] and stem in FREESURFER:
        return ""
    if folders and folders[-1] == "mri" and (stem in FREESURFER_NO_SCANS or re.match(r"[lr]h\.", stem)):
        return LABELS
    words = words_of(stem)
    ending = _without_numbers(words[-2:] if len(words) > 1 and words[-1].isdecimal() else words[-1:])  # pve_0
    told = {word for word in _without_numbers(words) if word not in _LAST_WORD_ALONE} | {*ending}
    if stem.startswith("sub-") and words[-1] in ("t1w", "t2w", "flair", "pdw"):
        told = {*ending}
    for reason, known in _REASONS.items():
        if told & known:
            return reason
    return next(filter(None, map(_no_scans_in, folders)), "")


@lru_cache(100_000)
def _no_scans_in(folder: str) -> str:
    """Why a folder holds no scans: all its words that say something say this."""
    words = {word for word in _without_numbers(words_of(folder)) if word not in STRUCTURE and word not in SPLIT_WORDS}
    words.discard("")
    if plain(folder) in MAP_FOLDERS:
        return "tissue or probability maps"
    return next((reason for reason, known in _REASONS.items() if words and words <= known), "")


def _without_numbers(words: Iterable[str]) -> list[str]:
    return ["seg" if word.startswith("seg") else word.rstrip("0123456789") for word in words]


def spm_version(stem: str, stems: Container[str]) -> tuple[str, str]:
    """What SPM put before the name of another scan here, and that name: `wanna` beside `anna`; "" and the stem for none.

    stems: of all files, in lower case.
    """
    for length in range(4, 0, -1):
        if SPM_VERSION.fullmatch(stem[:length]) and stem[length:].lower() in stems:
            return stem[:length], stem[length:]
    return "", stem


def spm_output(stem: str, stems: Container[str]) -> tuple[str, str]:
    """Why a file that SPM made from another one here is no scan, and the other's name; "" and the stem for what is a scan."""
    found = SPM_NO_SCAN.match(stem)
    rest = stem[found.end() :] if found else ""
    tissues = [f"c{tissue}{rest}".lower() in stems for tissue in (1, 2, 3, 7)]
    beside = rest.lower() in stems or tissues == [True, True, True, False]
    if not found or not rest or not (beside or found["field"]):
        return "", stem
    return ("deformation fields" if found["field"] else "tissue or probability maps"), rest


def is_contrast_word(word: str, last: bool = True) -> bool:
    """Whether a word in lower case says a contrast. last: whether it ends the name, as some have to."""
    return word in _CONTRAST_OF and (last or word not in _LAST_ALONE)


def contrast_named(text: str) -> str:
    """The contrast that a user means; "" for none."""
    return _CONTRAST_OF.get(plain(text), "")


def split_folders(folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The folders, as parts from the root on, that state a split: they are called train, val, test and the like and nothing else
    that says something, or differ from a sibling in that word alone (OASIS_train beside OASIS_test)."""
    found: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {}
    for folder in folders:
        words = words_of(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder[-1]))
        words = [plain(folder[-1])] if plain(folder[-1]) in SPLIT_WORDS else words
        stated = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(stated) == 1:
            found[folder] = stated.pop(), tuple(word for word in words if word not in SPLIT_WORDS)
    siblings = defaultdict(set)
    for folder, (split, others) in found.items():
        siblings[folder[:-1], others].add(split)
    return {
        folder: split
        for folder, (split, others) in found.items()
        if len(siblings[folder[:-1], others]) > 1 or not {w for w in others if not w.isdecimal()} - _SPLIT_FILLERS
    }


def _is_class(folder: str) -> bool:
    bare = plain(re.sub(rf"(?<![a-z]){_CLASS_FILLERS}(?![a-z])", "", folder.lower()))
    return bare in CLASSES or bare.removesuffix("s") in CLASSES


@lru_cache(100_000)
def kind_of_folder(name: str) -> str:
    """What a folder names: "class", "group", "visit", "contrast", "structure", "weak" (nobody, unless nothing else does) or ""
    for what may be a person."""
    words = words_of(name)
    if _is_class(name):
        return "class"
    if VISIT.fullmatch(name) or DATE.fullmatch(name):
        return "visit"
    if NUMBERED_BY_ARCHIVE.fullmatch(name):
        return "weak"
    numbered = [word for word in words if not re.fullmatch(r"\d+", word)]
    bare = [re.sub(r"\d+$", "", word) for word in numbered]
    known = [word in STRUCTURE or short in STRUCTURE or word in _CONTRAST_OF for word, short in zip(numbered, bare)]
    if words and numbered and all(known):
        contrast = any(word in _CONTRAST_OF for word in numbered)
        return "contrast" if contrast else "weak" if any(map(str.isdecimal, name)) else "structure"
    if GROUP.fullmatch(name):
        return "group"
    if SHORT_VISIT.fullmatch(name):
        return "weak"
    return ""
