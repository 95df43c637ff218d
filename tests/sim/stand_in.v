// SPDX-License-Identifier: Apache-2.0
// The tests room: a bus master with a register file that breaks the rules of AXI on command.
//
// Registers: 0x0 address, 0x4 beats, 0x8 command, 0xC errors seen, 0x10 last word read.
// A command copies `beats` words of 8 bytes from `address` to `address` + 0x1000: reads them as one
// burst, then writes what it read. Its upper bits choose what is done wrong (see `wrong`).
module shears (
    input aclk, input aresetn, output irq,
    input [11:0] s_axi_awaddr, input [2:0] s_axi_awprot, input s_axi_awvalid,
    output s_axi_awready, input [31:0] s_axi_wdata, input [3:0] s_axi_wstrb, input s_axi_wvalid,
    output s_axi_wready, output [1:0] s_axi_bresp, output s_axi_bvalid, input s_axi_bready,
    input [11:0] s_axi_araddr, input [2:0] s_axi_arprot, input s_axi_arvalid,
    output s_axi_arready, output [31:0] s_axi_rdata, output [1:0] s_axi_rresp,
    output s_axi_rvalid, input s_axi_rready,
    output m_axi_arid, output [31:0] m_axi_araddr, output [7:0] m_axi_arlen,
    output [2:0] m_axi_arsize, output [1:0] m_axi_arburst, output [3:0] m_axi_arcache,
    output [2:0] m_axi_arprot, output m_axi_arvalid, input m_axi_arready, input m_axi_rid,
    input [63:0] m_axi_rdata, input [1:0] m_axi_rresp, input m_axi_rlast, input m_axi_rvalid,
    output m_axi_rready, output m_axi_awid, output [31:0] m_axi_awaddr, output [7:0] m_axi_awlen,
    output [2:0] m_axi_awsize, output [1:0] m_axi_awburst, output [3:0] m_axi_awcache,
    output [2:0] m_axi_awprot, output m_axi_awvalid, input m_axi_awready,
    output [63:0] m_axi_wdata, output [7:0] m_axi_wstrb, output m_axi_wlast, output m_axi_wvalid,
    input m_axi_wready, input m_axi_bid, input [1:0] m_axi_bresp, input m_axi_bvalid,
    output m_axi_bready
);
  localparam FALLING_VALID = 1, MOVING_ADDRESS = 2, WRONG_LAST = 3, WRONG_SIZE = 4,
      MOVING_DATA = 5, DEAF = 6;
  localparam IDLE = 0, READ = 1, WRITE = 2, DONE = 3;

  reg [31:0] address, beats, errors;
  reg [7:0] strobes;
  reg [63:0] last_word;
  reg [2:0] wrong;
  reg [1:0] state;
  reg arvalid, awvalid, wvalid, fell;
  reg [7:0] count;
  reg [63:0] buffer[0:255];

  // Registers: one access at a time, an error answer above 0x1F.
  reg bvalid, rvalid;
  reg [1:0] lite_resp;
  reg [31:0] rdata;
  wire write = s_axi_awvalid & s_axi_wvalid & ~bvalid;
  wire read = s_axi_arvalid & ~rvalid;
  assign s_axi_awready = write;
  assign s_axi_wready = write;
  assign s_axi_arready = read & ~(wrong == DEAF);
  assign s_axi_bvalid = bvalid;
  assign s_axi_rvalid = rvalid;
  assign s_axi_bresp = lite_resp;
  assign s_axi_rresp = lite_resp;
  assign s_axi_rdata = rdata;

  assign irq = state == DONE;
  assign m_axi_arid = 0;
  assign m_axi_awid = 0;
  assign m_axi_araddr = address + ((wrong == MOVING_ADDRESS) ? {20'b0, count, 4'b0} : 32'b0);
  assign m_axi_arlen = beats[7:0] - 8'd1;
  assign m_axi_arsize = (wrong == WRONG_SIZE) ? 3'd2 : 3'd3;
  assign m_axi_arburst = 1;
  assign m_axi_arcache = 3;
  assign m_axi_arprot = 0;
  assign m_axi_arvalid = arvalid;
  assign m_axi_rready = 1;
  assign m_axi_awaddr = address + 32'h1000;
  assign m_axi_awlen = beats[7:0] - 8'd1;
  assign m_axi_awsize = 3;
  assign m_axi_awburst = 1;
  assign m_axi_awcache = 3;
  assign m_axi_awprot = 0;
  assign m_axi_awvalid = awvalid;
  assign m_axi_wdata = buffer[count] ^ ((wrong == MOVING_DATA) ? {32'b0, clock} : 64'b0);
  assign m_axi_wstrb = strobes;
  assign m_axi_wlast = (count == beats[7:0] - 8'd1) ^ (wrong == WRONG_LAST);
  assign m_axi_wvalid = wvalid;
  assign m_axi_bready = 1;
  reg [31:0] clock;

  always @(posedge aclk) begin
    clock <= clock + 1;
    if (bvalid & s_axi_bready) bvalid <= 0;
    if (rvalid & s_axi_rready) rvalid <= 0;
    if (m_axi_rvalid & m_axi_rresp != 0) errors <= errors + 1;
    if (m_axi_bvalid & m_axi_bresp != 0) errors <= errors + 1;
    if (m_axi_rvalid) last_word <= m_axi_rdata;
    if (read & s_axi_arready) begin
      rvalid <= 1;
      lite_resp <= s_axi_araddr > 12'h1F ? 2 : 0;
      case (s_axi_araddr)
        12'h0: rdata <= address;
        12'h4: rdata <= beats;
        12'hC: rdata <= errors;
        12'h10: rdata <= last_word[31:0];
        default: rdata <= 0;
      endcase
    end
    if (write) begin
      bvalid <= 1;
      lite_resp <= s_axi_awaddr > 12'h1F ? 2 : 0;
      case (s_axi_awaddr)
        12'h0: address <= s_axi_wdata;
        12'h4: beats <= s_axi_wdata;
        12'h8: begin
          wrong <= s_axi_wdata[2:0];
          strobes <= s_axi_wdata[15:8];
          state <= READ;
          arvalid <= 1;
          fell <= 0;
          count <= 0;
        end
        default: ;
      endcase
    end
    case (state)
      READ: begin
        if (wrong == FALLING_VALID & ~fell) begin
          arvalid <= 0;
          fell <= 1;
        end
        if (wrong == MOVING_ADDRESS & arvalid) count <= count + 1;
        if (arvalid & m_axi_arready) begin
          arvalid <= 0;
          count <= 0;
        end
        if (m_axi_rvalid) begin
          buffer[count] <= m_axi_rdata;
          count <= count + 1;
          if (m_axi_rlast) begin
            state <= WRITE;
            count <= 0;
            awvalid <= 1;
            wvalid <= 1;
          end
        end
      end
      WRITE: begin
        if (m_axi_awready) awvalid <= 0;
        if (wvalid & m_axi_wready) begin
          count <= count + 1;
          if (count == beats[7:0] - 8'd1) wvalid <= 0;
        end
        if (m_axi_bvalid) state <= DONE;
      end
      default: ;
    endcase
    if (~aresetn) begin
      {bvalid, rvalid, arvalid, awvalid, wvalid, wrong, errors, clock} <= 0;
      state <= IDLE;
    end
  end
endmodule
