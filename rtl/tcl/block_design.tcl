# SPDX-License-Identifier: Apache-2.0
# The hardware room: the block design around the accelerator on a Zynq-7000.
#
#   ps7 M_AXI_GP0 -> control_bus -> accelerator s_axi, axi_intc
#   accelerator m_axi -> memory_bus -> ps7 S_AXI_HP0
#   accelerator irq -> axi_intc -> xlconcat -> ps7 IRQ_F2P
#   ps7 FCLK_CLK0 -> clk_wiz -> every clock
#
# pynq (3 and 4) only lists interrupts that reach IRQ_F2P through an AXI interrupt controller.

proc config {cell args} {
    set settings {}
    foreach {name value} $args {
        lappend settings CONFIG.$name $value
    }
    set_property -dict $settings $cell
}

proc ip_cell {name vlnv args} {
    set cell [create_bd_cell -type ip -vlnv $vlnv $name]
    if {[llength $args]} {
        config $cell {*}$args
    }
    return $cell
}

proc wire {args} {
    set pins {}
    foreach pin $args {
        lappend pins [get_bd_pins $pin]
    }
    connect_bd_net {*}$pins
}

proc bus {master slave} {
    connect_bd_intf_net [get_bd_intf_pins $master] [get_bd_intf_pins $slave]
}

proc map_address {offset range space segment} {
    assign_bd_address -offset [format 0x%08X $offset] -range [format 0x%08X $range] \
        -target_address_space [get_bd_addr_spaces $space] [get_bd_addr_segs $segment] -force
}

proc make_block_design {} {
    global design ip_vendor ip_library ip_name ip_version ps7_parameters reference_hz clock_hz
    global registers_address registers_bytes interrupt_controller_address ddr_bytes
    create_bd_design $design

    set ps7 [ip_cell ps7 xilinx.com:ip:processing_system7:5.5 {*}$ps7_parameters]
    config $ps7 \
        PCW_FPGA0_PERIPHERAL_FREQMHZ [format %.6f [expr {$reference_hz / 1e6}]] \
        PCW_EN_CLK0_PORT 1 PCW_FPGA_FCLK0_ENABLE 1 PCW_EN_RST0_PORT 1 \
        PCW_USE_M_AXI_GP0 1 PCW_USE_S_AXI_HP0 1 PCW_S_AXI_HP0_DATA_WIDTH 64 \
        PCW_USE_FABRIC_INTERRUPT 1 PCW_IRQ_F2P_INTR 1
    ip_cell accelerator $ip_vendor:$ip_library:$ip_name:$ip_version
    ip_cell control_bus xilinx.com:ip:smartconnect:1.0 NUM_SI 1 NUM_MI 2
    ip_cell memory_bus xilinx.com:ip:smartconnect:1.0 NUM_SI 1 NUM_MI 1
    ip_cell axi_intc xilinx.com:ip:axi_intc:4.1 C_IRQ_CONNECTION 1
    ip_cell xlconcat xilinx.com:ip:xlconcat:2.1 NUM_PORTS 1
    ip_cell clk_wiz xilinx.com:ip:clk_wiz:6.0 PRIM_SOURCE No_buffer \
        PRIM_IN_FREQ [format %.3f [expr {$reference_hz / 1e6}]] \
        CLKOUT1_REQUESTED_OUT_FREQ [format %.3f [expr {$clock_hz / 1e6}]] \
        USE_LOCKED true USE_RESET true RESET_TYPE ACTIVE_LOW RESET_PORT resetn
    ip_cell system_reset xilinx.com:ip:proc_sys_reset:5.0

    create_bd_intf_port -mode Master -vlnv xilinx.com:interface:ddrx_rtl:1.0 DDR
    create_bd_intf_port -mode Master \
        -vlnv xilinx.com:display_processing_system7:fixedio_rtl:1.0 FIXED_IO
    foreach port {DDR FIXED_IO} {
        connect_bd_intf_net [get_bd_intf_pins ps7/$port] [get_bd_intf_ports $port]
    }

    wire ps7/FCLK_CLK0 clk_wiz/clk_in1
    wire ps7/FCLK_RESET0_N clk_wiz/resetn system_reset/ext_reset_in
    wire clk_wiz/locked system_reset/dcm_locked
    wire clk_wiz/clk_out1 ps7/M_AXI_GP0_ACLK ps7/S_AXI_HP0_ACLK accelerator/aclk \
        control_bus/aclk memory_bus/aclk axi_intc/s_axi_aclk system_reset/slowest_sync_clk
    wire system_reset/interconnect_aresetn control_bus/aresetn memory_bus/aresetn
    wire system_reset/peripheral_aresetn accelerator/aresetn axi_intc/s_axi_aresetn
    wire accelerator/irq axi_intc/intr
    wire axi_intc/irq xlconcat/In0
    wire xlconcat/dout ps7/IRQ_F2P

    bus ps7/M_AXI_GP0 control_bus/S00_AXI
    bus control_bus/M00_AXI accelerator/s_axi
    bus control_bus/M01_AXI axi_intc/s_axi
    bus accelerator/m_axi memory_bus/S00_AXI
    bus memory_bus/M00_AXI ps7/S_AXI_HP0

    map_address $registers_address $registers_bytes ps7/Data accelerator/s_axi/reg0
    map_address $interrupt_controller_address 0x10000 ps7/Data axi_intc/S_AXI/Reg
    map_address 0 $ddr_bytes accelerator/m_axi ps7/S_AXI_HP0/HP0_DDR_LOWOCM

    validate_bd_design
    check_clock [get_property CONFIG.FREQ_HZ [get_bd_pins clk_wiz/clk_out1]] $clock_hz
    save_bd_design
}
