"""Fetching: adds the rows' pictures to the workspace and removes duplicates, for preparation and preview."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing

from components.prepare_data.near_duplicates import fingerprint
from components.prepare_data.picture_store import PictureStore
from components.prepare_data.pictures import Places, Prepared, Wanted, stream_pictures
from components.prepare_data.workspace import Workspace
from fovea.fetch.profiles import FetchProfile
from fovea.images import PictureLimits
from fovea.records import sha256_digest
from fovea.task import FieldValue

DUPLICATE = "duplicate"
PICTURE_LIMITS = PictureLimits()


def fetch_pictures(
    workspace: Workspace,
    places: Places,
    *,
    profile: FetchProfile,
    store: PictureStore | None,
    longest_side: int,
    concurrency: int,
    progress: Callable[[int, int], None],
    seconds: float | None = None,
) -> None:
    """Add the kept rows' pictures to the workspace, and leave out rows without a usable picture.

    Args:
        workspace: A workspace with the source's rows.
        places: Resolves the rows' addresses.
        profile: The fetch profile: which hosts are allowed, and how they are reached.
        store: The store for fetched originals; None to store nothing.
        longest_side: The longest side of a prepared picture in pixels.
        concurrency: The number of pictures that are fetched at the same time.
        progress: Called with the number of finished pictures and the total.
        seconds: The time limit; rows whose pictures are not fetched by then are deleted. None for no limit.

    Raises:
        UserError: None of the first pictures can be used, or S3 refuses access.
    """
    total = workspace.pictures.count_needed()
    end = time.monotonic() + seconds if seconds is not None else float("inf")
    wanted = (
        Wanted(address, workspace.pictures.original(address))
        for address in workspace.pictures.needed()
        if time.monotonic() < end
    )
    with closing(
        stream_pictures(
            wanted,
            places,
            profile=profile,
            store=store,
            fingerprint=fingerprint,
            longest_side=longest_side,
            limits=PICTURE_LIMITS,
            concurrency=concurrency,
        )
    ) as pictures:
        for done, picture in enumerate(pictures, start=1):
            if isinstance(picture, Prepared):
                workspace.pictures.add(
                    picture.address,
                    digest=picture.digest,
                    jpeg=picture.jpeg,
                    size=(picture.width, picture.height),
                    original_size=(picture.original_width, picture.original_height),
                    fingerprint=picture.fingerprint,
                )
            else:
                workspace.pictures.add_unusable(picture.address, picture.reason, picture.detail)
            progress(done, total)
            if time.monotonic() > end:
                break
    if seconds is not None:
        workspace.rows.delete_without_picture()
    workspace.rows.leave_out_unusable_pictures()


def drop_duplicates(workspace: Workspace) -> None:
    """Set the kept rows' IDs, and keep only the first of rows that are the same."""
    workspace.rows.set_row_ids(_row_id)
    workspace.rows.leave_out_duplicates(DUPLICATE)


def _row_id(product: str, picture: str, values: Mapping[str, FieldValue], currency: str | None) -> str:
    """Return a digest of a row's content. It depends on nothing else, so a larger feed does not change it."""
    return sha256_digest([product, picture, values, currency]).removeprefix("sha256:")[:24]
