use super::*;
use libublk_rs_sys as oracle;

macro_rules! same_layout {
    ($ours:ty, $theirs:ty, $($field:ident as $other:ident),+ $(,)?) => {
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), stringify!($ours));
        $(assert_eq!(
            offset_of!($ours, $field),
            offset_of!($theirs, $other),
            concat!(stringify!($ours), ".", stringify!($field))
        );)+
    };
}

#[test]
fn control_structures_have_the_kernels_layout() {
    same_layout!(
        CtrlCmd,
        oracle::ublksrv_ctrl_cmd,
        dev_id as dev_id,
        queue_id as queue_id,
        buffer_len_bytes as len,
        addr as addr,
        data as data,
        dev_path_len as dev_path_len,
        pad as pad,
        reserved as reserved
    );
    same_layout!(
        DevInfo,
        oracle::ublksrv_ctrl_dev_info,
        nr_hw_queues as nr_hw_queues,
        queue_depth as queue_depth,
        state as state,
        pad0 as pad0,
        max_io_buf_bytes as max_io_buf_bytes,
        dev_id as dev_id,
        ublksrv_pid as ublksrv_pid,
        pad1 as pad1,
        flags as flags,
        ublksrv_flags as ublksrv_flags,
        owner_uid as owner_uid,
        owner_gid as owner_gid,
        reserved1 as reserved1,
        reserved2 as reserved2
    );
    same_layout!(
        ParamBasic,
        oracle::ublk_param_basic,
        attrs as attrs,
        logical_bs_shift as logical_bs_shift,
        physical_bs_shift as physical_bs_shift,
        io_opt_shift as io_opt_shift,
        io_min_shift as io_min_shift,
        max_sectors as max_sectors,
        chunk_sectors as chunk_sectors,
        dev_sectors as dev_sectors,
        virt_boundary_mask as virt_boundary_mask
    );
    same_layout!(
        ParamDiscard,
        oracle::ublk_param_discard,
        discard_alignment as discard_alignment,
        discard_granularity as discard_granularity,
        max_discard_sectors as max_discard_sectors,
        max_write_zeroes_sectors as max_write_zeroes_sectors,
        max_discard_segments as max_discard_segments,
        reserved0 as reserved0
    );
}

#[test]
fn our_parameters_are_the_beginning_of_the_kernels() {
    assert!(size_of::<Params>() <= size_of::<oracle::ublk_params>());
    assert_eq!(
        offset_of!(Params, len_bytes),
        offset_of!(oracle::ublk_params, len)
    );
    assert_eq!(
        offset_of!(Params, types),
        offset_of!(oracle::ublk_params, types)
    );
    assert_eq!(
        offset_of!(Params, basic),
        offset_of!(oracle::ublk_params, basic)
    );
    assert_eq!(
        offset_of!(Params, discard),
        offset_of!(oracle::ublk_params, discard)
    );
    assert_eq!(
        offset_of!(Params, devt),
        offset_of!(oracle::ublk_params, devt)
    );
    assert_eq!(
        offset_of!(Params, unused),
        offset_of!(oracle::ublk_params, zoned)
    );
}

#[test]
fn io_structures_have_the_kernels_layout() {
    same_layout!(
        IoDesc,
        oracle::ublksrv_io_desc,
        op_flags as op_flags,
        nr_sectors as nr_sectors,
        start_sector as start_sector,
        addr as addr
    );
    same_layout!(
        IoCmd,
        oracle::ublksrv_io_cmd,
        q_id as q_id,
        tag as tag,
        result as result,
        addr as addr
    );
}

#[test]
fn command_numbers_are_the_kernels() {
    let pairs = [
        (CMD_GET_DEV_INFO, oracle::UBLK_U_CMD_GET_DEV_INFO),
        (CMD_ADD_DEV, oracle::UBLK_U_CMD_ADD_DEV),
        (CMD_DEL_DEV, oracle::UBLK_U_CMD_DEL_DEV),
        (CMD_START_DEV, oracle::UBLK_U_CMD_START_DEV),
        (CMD_STOP_DEV, oracle::UBLK_U_CMD_STOP_DEV),
        (CMD_SET_PARAMS, oracle::UBLK_U_CMD_SET_PARAMS),
        (CMD_GET_PARAMS, oracle::UBLK_U_CMD_GET_PARAMS),
        (
            CMD_START_USER_RECOVERY,
            oracle::UBLK_U_CMD_START_USER_RECOVERY,
        ),
        (CMD_END_USER_RECOVERY, oracle::UBLK_U_CMD_END_USER_RECOVERY),
        (CMD_GET_FEATURES, oracle::UBLK_U_CMD_GET_FEATURES),
        (CMD_UPDATE_SIZE, oracle::UBLK_U_CMD_UPDATE_SIZE),
        (CMD_TRY_STOP_DEV, oracle::UBLK_U_CMD_TRY_STOP_DEV),
        (IO_FETCH_REQ, oracle::UBLK_U_IO_FETCH_REQ),
        (
            IO_COMMIT_AND_FETCH_REQ,
            oracle::UBLK_U_IO_COMMIT_AND_FETCH_REQ,
        ),
    ];
    for (index, (ours, theirs)) in pairs.into_iter().enumerate() {
        assert_eq!(ours, theirs, "pair {index}");
    }
}

#[test]
fn flags_operations_and_states_are_the_kernels() {
    let pairs: [(u64, u64); 24] = [
        (F_USER_RECOVERY, oracle::UBLK_F_USER_RECOVERY.into()),
        (
            F_USER_RECOVERY_REISSUE,
            oracle::UBLK_F_USER_RECOVERY_REISSUE.into(),
        ),
        (F_CMD_IOCTL_ENCODE, oracle::UBLK_F_CMD_IOCTL_ENCODE.into()),
        (F_USER_COPY, oracle::UBLK_F_USER_COPY.into()),
        (F_UPDATE_SIZE, oracle::UBLK_F_UPDATE_SIZE.into()),
        (F_SAFE_STOP_DEV, oracle::UBLK_F_SAFE_STOP_DEV.into()),
        (STATE_DEAD.into(), oracle::UBLK_S_DEV_DEAD.into()),
        (STATE_LIVE.into(), oracle::UBLK_S_DEV_LIVE.into()),
        (STATE_QUIESCED.into(), oracle::UBLK_S_DEV_QUIESCED.into()),
        (STATE_FAIL_IO.into(), oracle::UBLK_S_DEV_FAIL_IO.into()),
        (OP_READ.into(), oracle::UBLK_IO_OP_READ.into()),
        (OP_WRITE.into(), oracle::UBLK_IO_OP_WRITE.into()),
        (OP_FLUSH.into(), oracle::UBLK_IO_OP_FLUSH.into()),
        (OP_DISCARD.into(), oracle::UBLK_IO_OP_DISCARD.into()),
        (
            OP_WRITE_ZEROES.into(),
            oracle::UBLK_IO_OP_WRITE_ZEROES.into(),
        ),
        (IO_F_FUA.into(), oracle::UBLK_IO_F_FUA.into()),
        (IO_F_NOUNMAP.into(), oracle::UBLK_IO_F_NOUNMAP.into()),
        (ATTR_READ_ONLY.into(), oracle::UBLK_ATTR_READ_ONLY.into()),
        (
            ATTR_VOLATILE_CACHE.into(),
            oracle::UBLK_ATTR_VOLATILE_CACHE.into(),
        ),
        (ATTR_FUA.into(), oracle::UBLK_ATTR_FUA.into()),
        (
            PARAM_TYPE_BASIC.into(),
            oracle::UBLK_PARAM_TYPE_BASIC.into(),
        ),
        (
            PARAM_TYPE_DISCARD.into(),
            oracle::UBLK_PARAM_TYPE_DISCARD.into(),
        ),
        (QUEUE_DEPTH_MAX.into(), oracle::UBLK_MAX_QUEUE_DEPTH.into()),
        (USER_COPY_BASE, oracle::UBLKSRV_IO_BUF_OFFSET.into()),
    ];
    for (index, (ours, theirs)) in pairs.into_iter().enumerate() {
        assert_eq!(ours, theirs, "pair {index}");
    }
    assert_eq!(USER_COPY_TAG_SHIFT, oracle::UBLK_TAG_OFF);
    assert_eq!(USER_COPY_QUEUE_SHIFT, oracle::UBLK_QID_OFF);
    assert_eq!(IO_RES_ABORT, oracle::UBLK_IO_RES_ABORT);
}

#[test]
fn a_tags_payload_lies_where_the_kernel_looks_for_it() {
    assert_eq!(user_copy_position(0, 0), 0x8000_0000);
    assert_eq!(user_copy_position(0, 1), 0x8000_0000 + (1 << 25));
    assert_eq!(user_copy_position(1, 0), 0x8000_0000 + (1 << 41));
    assert_eq!(
        user_copy_position(3, 127) - USER_COPY_BASE,
        (3 << 41) | (127 << 25)
    );
}
