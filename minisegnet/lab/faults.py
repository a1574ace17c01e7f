"""The faults by name, as `diagnosis` names them."""

from minisegnet.lab import data_faults, label_faults, loss_faults

# A function without arguments each, whose result is a context manager.
FAULTS = {function.__name__.replace("_", "-"): function for function in (
    loss_faults.unweighted_loss,
    loss_faults.wrong_ignore_id,
    label_faults.ignore_is_a_class,
    label_faults.shifted_labels,
    label_faults.excluded_ids_in_class_0,
    data_faults.interpolated_masks,
    data_faults.shuffled_pairs,
    data_faults.image_flipped_alone,
    label_faults.too_few_classes,
    label_faults.too_many_classes,
    loss_faults.extreme_weights,
    loss_faults.lr_too_high,
    loss_faults.lr_too_low,
    loss_faults.runaway_momentum,
    loss_faults.frozen_random_backbone,
    loss_faults.frozen_batch_norm,
    data_faults.unnormalised_input,
    data_faults.empty_confusion_matrix,
    label_faults.other_validation_classes,
    loss_faults.dice_alone,
    data_faults.all_ignored_batches,
)}
